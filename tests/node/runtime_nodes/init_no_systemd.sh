#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a node without systemd, as ../machine.sh is of those with an API server.
#   plain.sh DIRECTORY RUNTIME KUBELET ARGUMENT...
set -eu
here=$(dirname "$0") dir=$1 runtime=$2
shift 2
. "$here/ground.sh"

"$here/$runtime.sh" "$dir" >"$dir/$runtime.log" 2>&1 &
until [ -e /run/runtime.ready ]; do kill -0 $!; sleep 0.05; done
"$@" >"$dir/kubelet.log" 2>&1 &
while wait; do :; done # it adopts the orphans of the node
