#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a node without systemd and without an API server (with one: tests/support/nodes/kubelet_node.sh).
#   init_no_systemd.sh DIRECTORY RUNTIME KUBELET ARGUMENT...
set -eu
here=$(dirname "$0") dir=$1 runtime=$2
shift 2
. "$here/common_mounts.sh"

"$here/$runtime.sh" "$dir" >"$dir/$runtime.log" 2>&1 &
until [ -e /run/runtime.ready ]; do kill -0 $!; sleep 0.05; done
"$@" >"$dir/kubelet.log" 2>&1 &
while wait; do :; done # PID 1 reaps orphans
