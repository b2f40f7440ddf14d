#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a node: in namespaces of its own it is the node's pid 1, and when it ends the
# kernel ends all of the node and drops its mounts and pins with it. See tests/node/machine.py.
set -eu
dir=$1 binaries=$2 node=$3 address=$4 cgroup=$5
echo 0 >"$cgroup/cgroup.procs" # hooks at the node's cgroup see what the node itself does

mount --make-rshared / # pods mount with propagation; nothing comes back to the machine
for directory in /run /var/lib /var/log; do # kubelet, CNI: sockets, leases, logs of pods
  mount -t tmpfs -o mode=755 tmpfs "$directory"
done
mkdir -p /run/netns
mount -t bpf bpf /sys/fs/bpf
mount --make-shared /sys/fs/bpf
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  mkdir -p "/run/sysctl/${name%/*}" # the kubelet sets these, which would be the machine's
  cat "/proc/sys/$name" >"/run/sysctl/$name"
  mount --bind "/run/sysctl/$name" "/proc/sys/$name"
done

containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
until ctr version >/dev/null 2>&1; do kill -0 $!; sleep 0.05; done
for image in "$dir"/../images/*.tar; do
  ctr --namespace k8s.io images import "$image" >>"$dir/import.log" 2>&1
done
"$binaries/kube-proxy" --config="$dir/kube-proxy.yaml" --v=2 >"$dir/kube-proxy.log" 2>&1 &
"$binaries/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.kubeconfig" \
  --root-dir="$dir/kubelet" --hostname-override="$node" --node-ip="$address" --v=2 \
  >"$dir/kubelet.log" 2>&1 &
while wait; do :; done # it adopts the orphans of the node
