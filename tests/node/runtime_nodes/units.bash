# SPDX-License-Identifier: Apache-2.0
# Units of a runtime and a kubelet for systemd as PID 1 of a node. Sourced. They have no default
# dependencies, so that no other unit is needed.

# units DIRECTORY RUNTIME KUBELET ARGUMENT...
units() {
  local dir=$1 runtime=$2 into=/run/systemd/system
  shift 2
  mkdir -p $into
  cat >$into/node.target <<UNIT
[Unit]
DefaultDependencies=no
Wants=$runtime.service kubelet.service
UNIT
  cat >"$into/$runtime.service" <<UNIT
[Unit]
DefaultDependencies=no
[Service]
ExecStart=$here/$runtime.sh $dir
StandardOutput=append:$dir/$runtime.log
StandardError=inherit
Delegate=yes
KillMode=process
TasksMax=infinity
UNIT
  cat >$into/kubelet.service <<UNIT
[Unit]
DefaultDependencies=no
[Service]
ExecStartPre=/bin/sh -c 'until [ -e /run/runtime.ready ]; do sleep 0.05; done'
ExecStart=$*
StandardOutput=append:$dir/kubelet.log
StandardError=inherit
TimeoutStartSec=infinity
UNIT
}
