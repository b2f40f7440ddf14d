# SPDX-License-Identifier: Apache-2.0
"""A pair of somebody else: whatever program ZTUNNEL_BIN names.

It is run twice, `$ZTUNNEL_BIN outbound` in the client's network namespace and `$ZTUNNEL_BIN
inbound` in the server's, with the route in its environment:

    BENCH_LISTEN       address:port where the first one takes plain TCP
    BENCH_TUNNEL       address:port where the first one dials and the second one listens, mutual TLS
    BENCH_FORWARD      address:port of the server that the second one dials
    BENCH_CERTIFICATE, BENCH_KEY, BENCH_ROOTS   PEM files, one identity for both ends
    BENCH_DIRECTORY    a directory of its own

It stays in the foreground, listens within 15 seconds and ends at SIGTERM. Istio's ztunnel takes
its configuration in other words, so the program is a wrapper that says them and executes it.
May import `peer`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from bench.peers.peer import Address, Pair, Route

VARIABLE = "ZTUNNEL_BIN"


class External(Pair):
    """The program that ZTUNNEL_BIN names."""

    name = "ZTUNNEL_BIN"

    def absent(self) -> str | None:
        program = os.environ.get(VARIABLE, "")
        if not program:
            return f"{VARIABLE} is not set; see bench/peers/external.py"
        return None if shutil.which(program) else f"{VARIABLE}={program} is no program"

    def command(self, route: Route, role: str) -> tuple[Sequence[str], Mapping[str, str]]:
        return [os.environ[VARIABLE], role], {
            "BENCH_LISTEN": _text(route.listen),
            "BENCH_TUNNEL": _text(route.tunnel),
            "BENCH_FORWARD": _text(route.forward),
            "BENCH_CERTIFICATE": str(route.certificates.certificate),
            "BENCH_KEY": str(route.certificates.key),
            "BENCH_ROOTS": str(route.certificates.roots),
            "BENCH_DIRECTORY": str(route.directory),
        }


def _text(address: Address) -> str:
    return "{}:{}".format(*address)
