#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# containerd on a node, with the images of DIRECTORY/../images. Creates /run/runtime.ready once it is ready.
set -eu
dir=$1
containerd --config "$dir/containerd.toml" &
until ctr version >/dev/null 2>&1; do kill -0 $!; sleep 0.05; done
for image in "$dir"/../images/*.tar; do ctr --namespace k8s.io images import "$image"; done
touch /run/runtime.ready
wait
