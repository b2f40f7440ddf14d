# SPDX-License-Identifier: Apache-2.0
"""Containers: programs of this machine, in a pod's namespaces with a container's privileges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Object, key_of
from ztunnel.lab.runtime import envoy, images, nginx, process
from ztunnel.lab.runtime.sandbox import Sandbox

# The default of containerd and Docker.
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


def find_container(pod: Object, name: str | None) -> Object:
    """A container of the pod by name, or the first one. Raises LabError."""
    containers: list[Object] = pod["spec"]["containers"]
    for container in containers:
        if name in (None, container["name"]):
            return container
    known = ", ".join(container["name"] for container in containers)
    raise LabError(f"{key_of(pod)} has no container {name!r}; hint: it has {known}")


def log_path(names: LabNames, uid: str, container: str) -> Path:
    """The log of a container of the pod with `uid`."""
    return names.pod_dir(uid) / f"{container}.log"


def is_running(names: LabNames, sandbox: Sandbox, container: str) -> bool:
    """Whether the container's program, or a child of it, runs."""
    return process.is_running(sandbox.cgroup(names) / container)


def start(
    names: LabNames, sandbox: Sandbox, pod: Object, container: Object, commands: Mapping[str, str]
) -> None:
    """Start a container in the background. `commands`: of user-defined images.

    Raises images.UnknownImageError if there is no program for the image.
    """
    if nginx.is_official_nginx(container, commands):
        argv = _prepare_nginx(names, sandbox, pod, container)
    else:
        argv = images.argv(container, pod, commands)
    environment = images.environment(container, pod)
    if envoy.is_envoy(container):
        envoy.require()
        programs = envoy.program_directory(names.pod_dir(sandbox.uid))
        environment["PATH"] = f"{programs}:{environment['PATH']}"
    process.spawn(
        _in_container_argv(names, sandbox, pod, container, argv),
        sandbox.cgroup(names) / container["name"],
        log_path(names, sandbox.uid, container["name"]),
        environment,
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
    """A command line that runs `argv` in a container: in its namespaces, cgroup and privileges.

    With `privileged`, the command has all capabilities instead.
    """
    if privileged:
        inner = [*sandbox.enter_argv(names), "--", *argv]
    else:
        inner = _in_container_argv(names, sandbox, pod, container, argv)
    return process.in_cgroup_argv(sandbox.cgroup(names) / container["name"], inner)


def exec_environment(pod: Object, container: Object) -> dict[str, str]:
    """The environment of a command in a container: the container's, with the user's $TERM."""
    terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
    return images.environment(container, pod) | terminal


def _prepare_nginx(names: LabNames, sandbox: Sandbox, pod: Object, container: Object) -> list[str]:
    process.require("nginx")
    directory = names.pod_dir(sandbox.uid) / container["name"]
    for path, text in nginx.nginx_files(directory, container, pod):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return nginx.nginx_argv(directory)


def _in_container_argv(
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
    capabilities = context.get("capabilities") or {}
    granted = set(_DEFAULT_CAPABILITIES)
    for name in capabilities.get("drop") or []:
        granted = set() if name == "ALL" else granted - {_capability(name)}
    granted |= {_capability(name) for name in capabilities.get("add") or []}
    bounding = ",".join(["-all", *(f"+{name}" for name in sorted(granted))])
    return [f"--bounding-set={bounding}", "--inh-caps=-all"]


def _capability(name: str) -> str:
    return name.lower().removeprefix("cap_")
