#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Turn a disposable virtual machine into a node: `start` services of its systemd, `stop` them and all
# pods.
#   host_node.sh start DIRECTORY RUNTIME KUBELET ARGUMENT...
#   host_node.sh stop RUNTIME
set -eu
here=$(realpath "$(dirname "$0")")
. "$here/units.bash"

if [ "$1" = start ]; then
  units "${@:2}"
  systemctl daemon-reload
  exec systemctl start node.target
fi
systemctl stop kubelet.service
for pods in /sys/fs/cgroup/kubepods*; do echo 1 >"$pods/cgroup.kill"; done
systemctl kill --signal=KILL "$2.service" || true
systemctl stop "$2.service" || true
awk '$5 ~ /\/ztnode-/ {print $5}' /proc/self/mountinfo | sort -r | xargs -r -n 1 umount --lazy
rm -f /run/runtime.ready /run/crio/crio.sock /run/systemd/system/{node.target,kubelet.service,"$2.service"}
systemctl daemon-reload
