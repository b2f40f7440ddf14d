# SPDX-License-Identifier: Apache-2.0
# Mounts of every node, in its own mount namespace. Sourced by its PID 1.
mount --make-rshared / # mounts propagate to pods, but not to the machine
for directory in /run /var/lib /var/log; do # kubelet, CNI: sockets, leases, logs of pods
  mount -t tmpfs -o mode=755 tmpfs "$directory"
done
mkdir -p /run/netns
mount -t bpf bpf /sys/fs/bpf
mount --make-shared /sys/fs/bpf
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  mkdir -p "/run/sysctl/${name%/*}" # the kubelet sets these; hide those of the machine
  cat "/proc/sys/$name" >"/run/sysctl/$name"
  mount --bind "/run/sysctl/$name" "/proc/sys/$name"
done
