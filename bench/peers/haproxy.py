# SPDX-License-Identifier: Apache-2.0
"""HAProxy in TCP mode: a mutual TLS connection per connection.

The configuration below has comments on its settings.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Mapping, Sequence

from bench.comparison.measurements import HAPROXY
from bench.peers.peer import Pair, Route

# One thread, as ztunnel has one worker. 64 KiB buffers: bulk is slower with the default of 16 KiB
# and no faster with 256 KiB. Sessions are resumed (the default); ciphers are those of ztunnel.
_COMMON = """\
global
    nbthread 1
    maxconn {connections}
    tune.bufsize 65536
    tune.ssl.cachesize 100000
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_256_GCM_SHA384
    ssl-default-server-options ssl-min-ver TLSv1.3
    ssl-default-server-ciphersuites TLS_AES_256_GCM_SHA384
defaults
    mode tcp
    maxconn {connections}
    timeout connect 10s
    timeout client 1h
    timeout server 1h
"""

_OUTBOUND = """\
listen outbound
    bind {listen[0]}:{listen[1]} backlog 4096
    server other {tunnel[0]}:{tunnel[1]} ssl crt {bundle} ca-file {roots} verify required
"""

_INBOUND = """\
listen inbound
    bind {tunnel[0]}:{tunnel[1]} backlog 4096 ssl crt {bundle} ca-file {roots} verify required
    server app {forward[0]}:{forward[1]}
"""


class Haproxy(Pair):
    """The HAProxy of Debian."""

    name = HAPROXY

    def absent(self) -> str | None:
        return (
            None if shutil.which("haproxy") else "haproxy not found; hint: apt-get install haproxy"
        )

    def command(self, route: Route, role: str) -> tuple[Sequence[str], Mapping[str, str]]:
        own = {"outbound": _OUTBOUND, "inbound": _INBOUND}[role]
        text = (_COMMON + own).format(
            connections=_connections(),
            listen=route.listen,
            tunnel=route.tunnel,
            forward=route.forward,
            bundle=route.certificates.bundle,
            roots=route.certificates.roots,
        )
        path = route.directory / f"{role}.cfg"
        path.write_text(text)
        return ["haproxy", "-db", "-f", str(path)], {}


def _connections() -> int:
    """As many as descriptors allow, two for each: HAProxy does not start with a larger number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(40_000, (hard - 200) // 2)
