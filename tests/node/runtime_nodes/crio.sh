#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# CRI-O on a node, with the images of DIRECTORY/../images. /run/runtime.ready tells when.
set -eu
dir=$1
for image in "$dir"/../images/*.tar; do # before it looks at its storage
  buildah --root "$dir/storage" --runroot /run/containers/storage --storage-driver overlay \
    pull --signature-policy "$dir/policy.json" --quiet "oci-archive:$image"
done
"$dir/bin/crio" --config "$dir/crio.toml" --config-dir "" &
until [ -S /run/crio/crio.sock ]; do kill -0 $!; sleep 0.05; done
touch /run/runtime.ready
wait
