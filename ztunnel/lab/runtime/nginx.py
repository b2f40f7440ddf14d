# SPDX-License-Identifier: Apache-2.0
"""Runs the machine's nginx for containers with the official nginx image. Pure.

Its page `/whoami` returns the client's address as the app sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ztunnel.lab.objects import Object
from ztunnel.lab.runtime.images import base_name, tcp_ports

_OFFICIAL_COMMAND = ("nginx", "-g", "daemon off;")  # the CMD of the official image
_CONFIG = """\
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
    # the client's address as the app sees it
    location = /whoami {{
      default_type application/json;
      return 200 '{{"pod": "{pod}", "client": "$remote_addr", "client_port": $remote_port}}\\n';
    }}
  }}
}}
"""
_PAGE = """\
<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1><p>Served by pod {pod} on {node}.</p></body></html>
"""


def is_official_nginx(container: Object, commands: Mapping[str, str]) -> bool:
    """Whether the container runs the official image with its default command.

    `commands`: the shell commands of user-defined images, which take precedence.
    """
    if base_name(container["image"]) != "nginx" or "nginx" in commands:
        return False
    argv = (*(container.get("command") or ()), *(container.get("args") or ()))
    return argv in ((), _OFFICIAL_COMMAND)


def nginx_files(directory: Path, container: Object, pod: Object) -> Iterator[tuple[Path, str]]:
    """The configuration and page of a container's nginx, and their paths below `directory`."""
    ports = tcp_ports(container) or [80]
    listens = "\n".join(
        f"    listen 0.0.0.0:{port};\n    listen [::]:{port} ipv6only=on;" for port in ports
    )
    name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
    config = _CONFIG.format(directory=directory, listens=listens, pod=name)
    yield directory / "nginx.conf", config
    yield directory / "html" / "index.html", _PAGE.format(pod=name, node=node)


def nginx_argv(directory: Path) -> list[str]:
    """The command line for the configuration in `directory`."""
    return ["nginx", "-e", "stderr", "-c", str(directory / "nginx.conf"), *_OFFICIAL_COMMAND[1:]]
