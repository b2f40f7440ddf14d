#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# CRI-O on a node, with the images of DIRECTORY/../images. Creates /run/runtime.ready once it is ready.
set -eu
dir=$1
for image in "$dir"/../images/*.tar; do # before CRI-O opens its storage
  buildah --root "$dir/storage" --runroot /run/containers/storage --storage-driver overlay \
    pull --signature-policy "$dir/policy.json" --quiet "oci-archive:$image"
done
"$dir/bin/crio" --config "$dir/crio.toml" --config-dir "" &
until [ -S /run/crio/crio.sock ]; do kill -0 $!; sleep 0.05; done
touch /run/runtime.ready
wait
