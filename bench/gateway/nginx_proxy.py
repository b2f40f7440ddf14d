# SPDX-License-Identifier: Apache-2.0
"""nginx as a reverse proxy: one worker, kept-alive connections to both sides, TLS 1.2 and 1.3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.l7.nginx import COMMON

_CONFIG = (
    COMMON
    + """\
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:tls:10m;
{upstreams}
  server {{
    listen 0.0.0.0:80 backlog=4096;
    listen 0.0.0.0:443 ssl backlog=4096;
{locations}
  }}
}}
"""
)
_UPSTREAM = """\
  upstream {name} {{
    server {address}:{port};
    keepalive 128;
    keepalive_requests 1000000000;
  }}
"""
_LOCATION = """\
    location /{name} {{
      proxy_pass http://{name};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
"""

Address = tuple[str, int]


def argv(directory: Path, routes: Mapping[str, Address], certificate: Path, key: Path) -> list[str]:
    """Write the configuration; return the command line.

    `routes`: the server of each path, without the slash.
    """
    directory.mkdir(parents=True, exist_ok=True)
    upstreams = [
        _UPSTREAM.format(name=name, address=ip, port=port) for name, (ip, port) in routes.items()
    ]
    path = directory / "nginx.conf"
    path.write_text(
        _CONFIG.format(
            directory=directory,
            certificate=certificate,
            key=key,
            upstreams="".join(upstreams),
            locations="".join(_LOCATION.format(name=name) for name in routes),
        )
    )
    return ["nginx", "-e", "stderr", "-c", str(path)]
