#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Becomes systemd as PID 1 of a node (without systemd: init_no_systemd.sh). Its cgroup is the root of a
# cgroup namespace, so that systemd, runtime and kubelet see the tree of a whole machine.
#   systemd.sh CGROUP DIRECTORY RUNTIME KUBELET ARGUMENT...
set -eu
here=$(realpath "$(dirname "$0")")
. "$here/units.bash"

# Prints path, type and options of every cgroup hierarchy.
hierarchies() {
  awk '$(NF-3) == "-" && $(NF-2) ~ /^cgroup2?$/ {print $5, $(NF-2), $NF}' /proc/self/mountinfo
}

# Mounts each hierarchy at the same path, with the root of the namespace as its root.
mount_hierarchies() {
  local found path kind options
  found=$(hierarchies)
  if [ "$(stat -f -c %T /sys/fs/cgroup)" = tmpfs ]; then # has version 1
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  fi
  while read -r path kind options; do
    mkdir -p "$path"
    options=${options#rw}
    options=${options#,}
    options=${options/#name=/none,name=}
    mount -t "$kind" ${options:+-o "$options"} "$kind" "$path"
  done <<<"$found"
}

if [ "$1" != / ]; then
  while read -r path _; do echo 0 >"$path/$1/cgroup.procs"; done < <(hierarchies)
  exec unshare --cgroup "$0" / "${@:2}"
fi
. "$here/common_mounts.sh"
mount_hierarchies
units "${@:2}"
exec env -i container=ztnode "PATH=$PATH" /lib/systemd/systemd --system --unit=node.target \
  --log-target=console --show-status=no
