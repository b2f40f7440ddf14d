# SPDX-License-Identifier: Apache-2.0
"""Loads the BPF programs and opens a connection, in namespaces that end with this process.

    unshare --mount --net python -m ztctl.node.probe_connection CGROUP

The pins are on a bpffs that only this mount namespace has, and the sockets are in a network
namespace without routes, so the kernel removes both whenever the process ends. The output is a
JSON list of steps.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pyroute2 import IPRoute

from ztunnel.datapath import netns, requirements, sockopt
from ztunnel.datapath.bpf import links, loader
from ztunnel.datapath.bpf.maps import Maps, PodEntry
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

PIN_DIR = requirements.BPFFS / "ztunnel-check"
TIMEOUT_S = 5.0  # the connection uses only the loopback device

# Documentation addresses (RFC 5737, RFC 3849): the namespace has no route to them.
_DESTINATIONS = {
    socket.AF_INET: SocketAddress("192.0.2.1", 80),
    socket.AF_INET6: SocketAddress("2001:db8::1", 80),
}
_LISTENER_KINDS = {
    socket.AF_INET: ListenerKind.OUTBOUND4,
    socket.AF_INET6: ListenerKind.OUTBOUND6,
}


@dataclass(frozen=True)
class Step:
    """One step of the probe, and its result as text."""

    name: str
    is_ok: bool
    result: str


def run(cgroup: Path) -> Iterator[Step]:
    """Run all steps; stop after the first if the programs do not load."""
    (cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    loaded = _load(cgroup)
    yield loaded
    if not loaded.is_ok:
        return
    with IPRoute() as ipr:
        ipr.link("set", index=1, state="up")  # lo
    with closing(Maps(PIN_DIR)) as maps, _current_netns() as netns_fd:
        yield _attach_inbound(netns_fd)
        maps.enroll(PodEntry(netns.cookie(netns_fd), ("192.0.2.2", "2001:db8::2")))
        for family in _families():
            yield _connect(netns_fd, family, maps)


def _load(cgroup: Path) -> Step:
    name = "programs"
    try:
        loader.load(cgroup, PIN_DIR)
    except (loader.LoadError, OSError) as error:
        return Step(name, False, str(error))
    kinds = sorted({hook.kind.name for hook in (*loader.CGROUP_HOOKS, loader.SK_LOOKUP)})
    return Step(name, True, f"all programs load and attach ({', '.join(kinds).lower()})")


def _attach_inbound(netns_fd: int) -> Step:
    name = "inbound hook"
    try:
        links.attach_sk_lookup(PIN_DIR, netns_fd, netns.cookie(netns_fd))
    except OSError as error:
        return Step(name, False, f"cannot attach sk_lookup: {error}")
    return Step(name, True, "sk_lookup attaches to a network namespace")


def _connect(netns_fd: int, family: socket.AddressFamily, maps: Maps) -> Step:
    """Connect to an address without a route: only a redirect to the listener can succeed."""
    name = "connect hook IPv6" if family is socket.AF_INET6 else "connect hook IPv4"
    destination = _DESTINATIONS[family]
    listeners = netns.open_listeners(netns_fd, maps, ipv6=family is socket.AF_INET6)
    try:
        listener = listeners[_LISTENER_KINDS[family]]
        listener.settimeout(TIMEOUT_S)
        with socket.socket(family, socket.SOCK_STREAM) as app:
            app.settimeout(TIMEOUT_S)
            app.connect((destination.ip, destination.port))
            with closing(listener.accept()[0]) as accepted:
                original = sockopt.original_destination(accepted)
            peer = SocketAddress(*app.getpeername()[:2])
    except OSError as error:
        return Step(name, False, f"cannot connect to {destination}: {error}")
    finally:
        for each in listeners.values():
            each.close()
    if (original, peer) != (destination, destination):
        return Step(
            name,
            False,
            f"connected to {destination}, but SO_ORIGINAL_DST is {original}, "
            f"and getpeername returns {peer}",
        )
    return Step(
        name, True, f"a connection to {destination} reaches the proxy with its original destination"
    )


def _families() -> list[socket.AddressFamily]:
    return [socket.AF_INET, socket.AF_INET6] if requirements.has_ipv6() else [socket.AF_INET]


@contextmanager
def _current_netns() -> Iterator[int]:
    netns_fd = netns.open_pid(os.getpid())
    try:
        yield netns_fd
    finally:
        os.close(netns_fd)


def _main() -> None:
    subprocess.run(["mount", "-t", "bpf", "bpf", str(requirements.BPFFS)], check=True)
    print(json.dumps([asdict(step) for step in run(Path(sys.argv[1]))]))


if __name__ == "__main__":
    _main()
