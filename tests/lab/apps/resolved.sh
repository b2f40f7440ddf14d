#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A real systemd-resolved inside a pod, as its 127.0.0.53, without systemd and D-Bus:
#   resolved.sh FOLDER SERVER COMMAND...     FOLDER: where its package was unpacked
# Runs COMMAND with a resolv.conf that names the stub; mounts are seen by these processes alone.
set -eu
[ "${INSIDE-}" ] || INSIDE=yes exec unshare --mount --propagation private "$0" "$@"
folder=$1 server=$2
shift 2
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /etc/systemd
mkdir -p /run/systemd/resolve
chown -R 65534:65534 /run/systemd
chmod 755 /run /etc/systemd
printf '[Resolve]\nDNS=%s\nDomains=~cluster.local\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\nCache=no\n' "$server" >/etc/systemd/resolved.conf
printf 'nameserver 127.0.0.53\noptions edns0\n' >/run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf
# Not as root: then it looks for a user of its own.
LD_LIBRARY_PATH=$(dirname "$(find "$folder" -name 'libsystemd-shared-*.so')") SYSTEMD_LOG_TARGET=console \
  setpriv --reuid 65534 --regid 65534 --clear-groups \
  --inh-caps +net_bind_service,+net_raw,+setpcap --ambient-caps +net_bind_service,+net_raw,+setpcap \
  "$(find "$folder" -path '*/lib/systemd/systemd-resolved')" >&2 &
stub=$!
trap 'kill $stub; wait $stub || true' EXIT
until ss -lnu | grep -q '127\.0\.0\.53'; do kill -0 $stub; sleep 0.05; done
"$@"
