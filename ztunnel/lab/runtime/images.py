# SPDX-License-Identifier: Apache-2.0
"""What runs for an image: the lab has no registry, its containers are programs of this machine.

A table maps an image's name to a shell command; the ConfigMap `ztunnel-lab-images` in any
manifest extends it. `command` and `args` in the pod's spec come first, as in Kubernetes. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ztunnel.lab.objects import Object, Objects, of_kind

TABLE_CONFIG_MAP = "ztunnel-lab-images"
NGINX_COMMAND = ("nginx", "-g", "daemon off;")  # the CMD of the official image
KUBERNETES_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SLEEP = "exec sleep infinity"
_TABLE: Mapping[str, str] = {
    "nginx": "nginx",  # replaced by the generated configuration, see nginx_argv
    "alpine": _SLEEP,
    "busybox": _SLEEP,
    "curl": _SLEEP,
    "debian": _SLEEP,
    "netshoot": _SLEEP,
    "pause": _SLEEP,
    "python": _SLEEP,
    "ubuntu": _SLEEP,
}

_NGINX_CONFIG = """\
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log /dev/stdout;
  default_type text/html;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
{listens}
    root {directory}/html;
    # who the app believes it talks to
    location = /whoami {{
      default_type application/json;
      return 200 '{{"pod": "{pod}", "client": "$remote_addr", "client_port": $remote_port}}\\n';
    }}
  }}
}}
"""
_NGINX_PAGE = """\
<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1><p>Served by pod {pod} on {node}.</p></body></html>
"""


class UnknownImageError(LookupError):
    """No program is known for the image, and the pod names no command."""


def base_name(image: str) -> str:
    """`docker.io/library/nginx:1.27@sha256:…` is `nginx`."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def extensions(objects: Objects) -> dict[str, str]:
    """Image name to shell command, from every ConfigMap `ztunnel-lab-images`."""
    table: dict[str, str] = {}
    for config in of_kind(objects, "ConfigMap"):
        if config["metadata"]["name"] == TABLE_CONFIG_MAP:
            table |= config.get("data") or {}
    return table


def is_stock_nginx(container: Object, table: Mapping[str, str]) -> bool:
    """Whether the container is the official nginx with its own command."""
    if base_name(container["image"]) != "nginx" or "nginx" in table:
        return False
    asked = (*(container.get("command") or ()), *(container.get("args") or ()))
    return asked in ((), NGINX_COMMAND)


def argv(container: Object, table: Mapping[str, str]) -> list[str]:
    """What to execute for a container that is not the stock nginx.

    Raises UnknownImageError when neither the spec nor a table knows.
    """
    command, args = container.get("command") or [], container.get("args") or []
    if command:
        return [str(word) for word in (*command, *args)]
    name = base_name(container["image"])
    if shell := table.get(name):
        return ["sh", "-c", shell, name, *map(str, args)]  # the table's command sees args as "$@"
    if args:
        return [str(word) for word in args]
    if name not in _TABLE:
        raise UnknownImageError(
            f"no program is known for image {container['image']!r}; mend: give the container a "
            f"command, or add {name!r} to the data of a ConfigMap named {TABLE_CONFIG_MAP}"
        )
    return ["sh", "-c", _TABLE[name]]


def tcp_ports(container: Object) -> list[int]:
    """The TCP ports a container declares."""
    ports = container.get("ports") or []
    return [port["containerPort"] for port in ports if port.get("protocol", "TCP") == "TCP"]


def nginx_files(directory: Path, container: Object, pod: Object) -> Iterator[tuple[Path, str]]:
    """The files of a stock nginx that keeps everything in `directory`."""
    ports = tcp_ports(container) or [80]
    listens = "\n".join(
        f"    listen 0.0.0.0:{port};\n    listen [::]:{port} ipv6only=on;" for port in ports
    )
    name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
    config = _NGINX_CONFIG.format(directory=directory, listens=listens, pod=name)
    yield directory / "nginx.conf", config
    yield directory / "html" / "index.html", _NGINX_PAGE.format(pod=name, node=node)


def nginx_argv(directory: Path) -> list[str]:
    """How the stock nginx is started."""
    return ["nginx", "-e", "stderr", "-c", str(directory / "nginx.conf"), *NGINX_COMMAND[1:]]


def environment(container: Object, pod: Object) -> dict[str, str]:
    """The container's environment: nothing of the person's own shell gets in."""
    variables = {"PATH": KUBERNETES_PATH, "HOME": "/root", "HOSTNAME": hostname(pod)}
    for entry in container.get("env") or []:
        source = (entry.get("valueFrom") or {}).get("fieldRef")
        value = _field(pod, source["fieldPath"]) if source else entry.get("value", "")
        variables[entry["name"]] = str(value)
    return variables


def hostname(pod: Object) -> str:
    """The pod's host name: at most 63 characters, as the kernel and DNS want."""
    name = pod["spec"].get("hostname") or pod["metadata"]["name"]
    return str(name)[:63].rstrip("-.")


def _field(pod: Object, path: str) -> Any:
    """The downward API for plain paths such as `status.podIP`; empty when absent."""
    value: Any = pod
    for part in _path_parts(path):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return value


def _path_parts(path: str) -> Sequence[str]:
    head, bracket, key = path.partition("['")
    return [*head.split("."), key.removesuffix("']")] if bracket else head.split(".")
