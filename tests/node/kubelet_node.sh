#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a node: in namespaces of its own it is the node's pid 1, and when it ends the
# kernel ends all of the node and drops its mounts and pins with it. See tests/node/kubelet_node.py.
set -eu
dir=$1 binaries=$2 node=$3 address=$4 cgroup=$5
echo 0 >"$cgroup/cgroup.procs" # hooks at the node's cgroup see what the node itself does

. "$(dirname "$0")/bare/ground.sh"

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
