# SPDX-License-Identifier: Apache-2.0
"""Stops the containers of a pod: preStop hooks, SIGTERM, and after the grace period SIGKILL."""

from __future__ import annotations

import subprocess
import time

from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Object
from ztunnel.lab.runtime import cgroups, containers, sandbox
from ztunnel.lab.runtime.sandbox import Sandbox


def stop(names: LabNames, pod: Object) -> None:
    """Stop all containers of a bound pod. Returns when none runs.

    The grace period is the pod's terminationGracePeriodSeconds, at most that of the lab, which is
    shorter than Kubernetes's default. It includes the preStop hooks.
    """
    pod_sandbox = sandbox.describe(names, pod)
    if not sandbox.is_alive(names, pod_sandbox):
        return
    wanted_s = float(pod["spec"].get("terminationGracePeriodSeconds", sandbox.STOP_GRACE_S))
    grace_s = min(wanted_s, sandbox.STOP_GRACE_S)
    deadline = time.monotonic() + grace_s
    for container in pod["spec"]["containers"]:
        _run_pre_stop(names, pod_sandbox, pod, container, grace_s)
    for container in pod["spec"]["containers"]:
        left_s = max(0.0, deadline - time.monotonic())
        cgroups.terminate(pod_sandbox.cgroup(names) / container["name"], left_s)


def _run_pre_stop(
    names: LabNames, pod_sandbox: Sandbox, pod: Object, container: Object, grace_s: float
) -> None:
    """Run the hook of a container. As in Kubernetes, its failure does not delay the stop."""
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    if seconds := (hook.get("sleep") or {}).get("seconds"):
        time.sleep(min(float(seconds), grace_s))
    if command := (hook.get("exec") or {}).get("command"):
        argv = containers.exec_argv(names, pod_sandbox, pod, container, command)
        try:
            subprocess.run(
                argv,
                env=containers.exec_environment(pod, container),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=grace_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return
