#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a node, in its own namespaces. When it ends, the kernel kills all processes of the node
# and removes its mounts and pins. See tests/support/nodes/kubelet_node.py.
set -eu
dir=$1 binaries=$2 node=$3 address=$4 cgroup=$5
echo 0 >"$cgroup/cgroup.procs" # so that BPF programs at the cgroup of the node also see the node itself

. "$(dirname "$0")/../../node/runtime_nodes/common_mounts.sh"

containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
until ctr version >/dev/null 2>&1; do kill -0 $!; sleep 0.05; done
for image in "$dir"/../images/*.tar; do
  ctr --namespace k8s.io images import "$image" >>"$dir/import.log" 2>&1
done
"$binaries/kube-proxy" --config="$dir/kube-proxy.yaml" --v=2 >"$dir/kube-proxy.log" 2>&1 &
"$binaries/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.kubeconfig" \
  --root-dir="$dir/kubelet" --hostname-override="$node" --node-ip="$address" --v=2 \
  >"$dir/kubelet.log" 2>&1 &
while wait; do :; done # PID 1 reaps orphans
