# SPDX-License-Identifier: Apache-2.0
"""A pair of somebody else: whatever program ZTUNNEL_BIN names.

It is run twice, `$ZTUNNEL_BIN outbound` in the client's network namespace and `$ZTUNNEL_BIN
inbound` in the server's, with the route in its environment:

    BENCH_LISTEN       address:port where the first one takes plain TCP
    BENCH_TUNNEL       address:port where the first one dials and the second one listens, mutual TLS
    BENCH_FORWARD      address:port of the server that the second one dials
    BENCH_CERTIFICATE, BENCH_KEY, BENCH_ROOTS   PEM files, one identity for both ends
    BENCH_DIRECTORY    a directory of its own

It stays in the foreground, listens within 15 seconds and ends at SIGTERM.

Istio's ztunnel needs a wrapper. What follows is from its documentation and source and was never run
here. It takes no certificate files and no address to listen on, but:

    PROXY_MODE=dedicated INPOD_ENABLED=false    one pod, sockets of its own namespace
    PROXY_WORKLOAD_INFO=namespace/name/service-account   who that pod is
    XDS_ADDRESS="" LOCAL_XDS_PATH=FILE          no control plane: workloads from a YAML list with
                                                name, namespace, serviceAccount, workloadIp, node,
                                                protocol: HBONE (its examples/localhost.yaml); both
                                                pods, with nodes of their own names
    NODE_NAME=NAME                              the pod's; on one node it would not tunnel
    FAKE_CA=true                                certificates of its own test CA
    ZTUNNEL_WORKER_THREADS=1                    as all have here

It listens on 15001, asks SO_ORIGINAL_DST where a connection was to go, and dials port 15008 there.
So `outbound` is that and a relay from BENCH_LISTEN to BENCH_FORWARD whose connections nftables
redirects to 15001, and the relay's own CPU is to be taken off; `inbound` is that and a redirect of
BENCH_TUNNEL, which the bench waits for, to 15008. Both paths stand at once: the second `outbound`
of a client's namespace has to share the first one's ztunnel.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from bench.peers.peer import Address, Pair, Route

VARIABLE = "ZTUNNEL_BIN"


class External(Pair):
    """The program in ZTUNNEL_BIN."""

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
