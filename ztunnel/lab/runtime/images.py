# SPDX-License-Identifier: Apache-2.0
"""The program of a container: images stand for shell commands of this machine. Pure.

The lab has no registry. The ConfigMap `ztunnel-lab-images` maps more images to commands. As in
Kubernetes, `command` and `args` of the pod take precedence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ztunnel.lab.objects import Object, Objects, of_kind

IMAGES_CONFIG_MAP = "ztunnel-lab-images"
CONTAINER_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_HOSTNAME = 63  # characters; RFC 1123

_REFERENCE = re.compile(r"\$?\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_SLEEP = "exec sleep infinity"
_COMMANDS: Mapping[str, str] = {
    "nginx": "nginx",  # with another command than the official image's, see nginx.py
    "alpine": _SLEEP,
    "busybox": _SLEEP,
    "curl": _SLEEP,
    "debian": _SLEEP,
    "netshoot": _SLEEP,
    "pause": _SLEEP,
    "python": _SLEEP,
    "ubuntu": _SLEEP,
}


class UnknownImageError(LookupError):
    """The image has no command, and neither has the container."""


def base_name(image: str) -> str:
    """`docker.io/library/nginx:1.27@sha256:…` is `nginx`."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def user_commands(objects: Objects) -> dict[str, str]:
    """Shell commands by image name, from all ConfigMaps named `ztunnel-lab-images`."""
    commands: dict[str, str] = {}
    for config_map in of_kind(objects, "ConfigMap"):
        if config_map["metadata"]["name"] == IMAGES_CONFIG_MAP:
            commands |= config_map.get("data") or {}
    return commands


def argv(container: Object, pod: Object, commands: Mapping[str, str]) -> list[str]:
    """The command line of a container. `commands`: of user-defined images.

    Raises UnknownImageError if neither the container nor the image has a command.
    """
    variables = _declared_variables(container, pod)
    command = [expanded(str(word), variables) for word in container.get("command") or []]
    args = [expanded(str(word), variables) for word in container.get("args") or []]
    if command:
        return [*command, *args]
    name = base_name(container["image"])
    if shell := commands.get(name):
        return ["sh", "-c", shell, name, *args]  # the command receives args as "$@"
    if args:
        return args
    if name not in _COMMANDS:
        raise UnknownImageError(
            f"image {container['image']!r} has no command in the lab; hint: set the container's "
            f"command, or add {name!r} to the data of a ConfigMap named {IMAGES_CONFIG_MAP}"
        )
    return ["sh", "-c", _COMMANDS[name]]


def expanded(word: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` of declared variables, as the kubelet does; `$$(NAME)` is a literal."""

    def replacement(found: re.Match[str]) -> str:
        if found[0].startswith("$$"):
            return found[0][1:]
        return variables.get(found[1], found[0])

    return _REFERENCE.sub(replacement, word)


def tcp_ports(container: Object) -> list[int]:
    """The container's TCP ports."""
    ports = container.get("ports") or []
    return [port["containerPort"] for port in ports if port.get("protocol", "TCP") == "TCP"]


def environment(container: Object, pod: Object) -> dict[str, str]:
    """The container's environment. It does not inherit the environment of the lab command."""
    defaults = {"PATH": CONTAINER_PATH, "HOME": "/root", "HOSTNAME": hostname(pod)}
    return defaults | _declared_variables(container, pod)


def hostname(pod: Object) -> str:
    """The pod's host name, truncated to the limit of the kernel and DNS."""
    name = pod["spec"].get("hostname") or pod["metadata"]["name"]
    return str(name)[:MAX_HOSTNAME].rstrip("-.")


def _declared_variables(container: Object, pod: Object) -> dict[str, str]:
    variables = {}
    for entry in container.get("env") or []:
        source = (entry.get("valueFrom") or {}).get("fieldRef")
        value = _field(pod, source["fieldPath"]) if source else entry.get("value", "")
        variables[entry["name"]] = str(value)
    return variables


def _field(pod: Object, path: str) -> Any:
    """A field of the downward API, for example `status.podIP`; empty if it does not exist."""
    value: Any = pod
    for part in _path_parts(path):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return value


def _path_parts(path: str) -> Sequence[str]:
    head, bracket, key = path.partition("['")
    return [*head.split("."), key.removesuffix("']")] if bracket else head.split(".")
