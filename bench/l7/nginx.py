# SPDX-License-Identifier: Apache-2.0
"""The server behind every contender: nginx with a small page, and connections without an end."""

from __future__ import annotations

from pathlib import Path

PORT = 8080
BODY_BYTES = 512
COMMON = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
"""
_CONFIG = (
    COMMON
    + """\
  server {{
    listen 0.0.0.0:{port} backlog=4096;
    location / {{ return 200 "{body}"; }}
  }}
}}
"""
)


def argv(directory: Path) -> list[str]:
    """Write the configuration to `directory`; return the command line."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "nginx.conf"
    path.write_text(_CONFIG.format(directory=directory, port=PORT, body="x" * BODY_BYTES))
    return ["nginx", "-e", "stderr", "-c", str(path)]
