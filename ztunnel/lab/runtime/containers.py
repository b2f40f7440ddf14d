# SPDX-License-Identifier: Apache-2.0
"""Containers: programs of this machine, run in a pod's namespaces with a container's privileges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Object
from ztunnel.lab.runtime import images, process
from ztunnel.lab.runtime.sandbox import Sandbox

# What container runtimes grant by default (containerd and Docker agree on this list).
_DEFAULT_CAPABILITIES = frozenset(
    {
        "audit_write",
        "chown",
        "dac_override",
        "fowner",
        "fsetid",
        "kill",
        "mknod",
        "net_bind_service",
        "net_raw",
        "setfcap",
        "setgid",
        "setpcap",
        "setuid",
        "sys_chroot",
    }
)


def log_path(names: LabNames, uid: str, container: str) -> Path:
    """Where a container's output goes."""
    return names.pod_dir(uid) / f"{container}.log"


def is_running(names: LabNames, sandbox: Sandbox, container: str) -> bool:
    """Whether the container's program (or a child of it) lives."""
    return process.running(sandbox.cgroup(names) / container)


def start(
    names: LabNames, sandbox: Sandbox, pod: Object, container: Object, table: Mapping[str, str]
) -> None:
    """Start a container's program in the background.

    Raises images.UnknownImageError when the lab has no program for its image.
    """
    if images.is_stock_nginx(container, table):
        argv = _prepare_nginx(names, sandbox, pod, container)
    else:
        argv = images.argv(container, table)
    process.spawn(
        _privileges_argv(names, sandbox, pod, container, argv),
        sandbox.cgroup(names) / container["name"],
        log_path(names, sandbox.uid, container["name"]),
        images.environment(container, pod),
    )


def exec_argv(
    names: LabNames,
    sandbox: Sandbox,
    pod: Object,
    container: Object,
    argv: Sequence[str],
    *,
    privileged: bool = False,
) -> list[str]:
    """A command line that runs `argv` as if the container had: namespaces, cgroup, privileges.

    `privileged` keeps every capability, for looking at what a container may not see.
    """
    if privileged:
        inner = [*sandbox.enter_argv(names), "--", *argv]
    else:
        inner = _privileges_argv(names, sandbox, pod, container, argv)
    return process.joined(sandbox.cgroup(names) / container["name"], inner)


def exec_environment(pod: Object, container: Object) -> dict[str, str]:
    """The environment of a command run in a container, with the person's terminal type."""
    terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
    return images.environment(container, pod) | terminal


def _prepare_nginx(names: LabNames, sandbox: Sandbox, pod: Object, container: Object) -> list[str]:
    process.require("nginx")
    directory = names.pod_dir(sandbox.uid) / container["name"]
    for path, text in images.nginx_files(directory, container, pod):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return images.nginx_argv(directory)


def _privileges_argv(
    names: LabNames, sandbox: Sandbox, pod: Object, container: Object, argv: Sequence[str]
) -> list[str]:
    context = {**(pod["spec"].get("securityContext") or {})}
    context |= container.get("securityContext") or {}
    prefix = sandbox.enter_argv(names, container.get("workingDir", "/"))
    options = [] if context.get("privileged") else _capability_options(context)
    if "runAsUser" in context:
        user = int(context["runAsUser"])
        options += [f"--reuid={user}", f"--regid={int(context.get('runAsGroup', user))}"]
        options.append("--clear-groups")
    return [*prefix, "--", *(["setpriv", *options, "--"] if options else []), *argv]


def _capability_options(context: Object) -> list[str]:
    asked = context.get("capabilities") or {}
    granted = set(_DEFAULT_CAPABILITIES)
    for name in asked.get("drop") or []:
        granted = set() if name == "ALL" else granted - {_capability(name)}
    granted |= {_capability(name) for name in asked.get("add") or []}
    bounding = ",".join(["-all", *(f"+{name}" for name in sorted(granted))])
    return [f"--bounding-set={bounding}", "--inh-caps=-all"]


def _capability(name: str) -> str:
    return name.lower().removeprefix("cap_")
