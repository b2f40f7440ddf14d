# SPDX-License-Identifier: Apache-2.0
"""Loads the real programs and dials once, in a place of its own that ends with this process.

    unshare --mount --net python -m ztctl.probe_connection CGROUP

The pins are on a bpffs that only this mount namespace sees, the sockets in a network namespace
without any route: when the process ends, however it ends, the kernel removes both. Prints
findings as a JSON list.
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
TIMEOUT = 5.0  # seconds; the connection never leaves the loopback device

# Addresses for documentation (RFC 5737, RFC 3849): there is no route to them here.
_DIALLED = {
    socket.AF_INET: SocketAddress("192.0.2.1", 80),
    socket.AF_INET6: SocketAddress("2001:db8::1", 80),
}
_LISTENERS = {
    socket.AF_INET: ListenerKind.OUTBOUND4,
    socket.AF_INET6: ListenerKind.OUTBOUND6,
}


@dataclass(frozen=True)
class Finding:
    """One thing tried: `found` says how it went."""

    name: str
    ok: bool
    found: str


def run(cgroup: Path) -> Iterator[Finding]:
    """All findings, up to the first that makes the next ones pointless."""
    (cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    loaded = _load(cgroup)
    yield loaded
    if not loaded.ok:
        return
    with IPRoute() as ipr:
        ipr.link("set", index=1, state="up")  # lo
    with closing(Maps(PIN_DIR)) as maps, _own_netns() as space:
        yield _attach_inbound(space)
        maps.enrol(PodEntry(netns.cookie(space), ("192.0.2.2", "2001:db8::2")))
        for family in _families():
            yield _dial(space, family, maps)


def _load(cgroup: Path) -> Finding:
    name = "programs"
    try:
        loader.load(cgroup, PIN_DIR)
    except (loader.LoadError, OSError) as error:
        return Finding(name, False, str(error))
    kinds = sorted({hook.kind.name for hook in (*loader.CGROUP_HOOKS, loader.SK_LOOKUP)})
    return Finding(name, True, f"all load and attach ({', '.join(kinds).lower()})")


def _attach_inbound(space: int) -> Finding:
    name = "inbound hook"
    try:
        links.attach_sk_lookup(PIN_DIR, space, netns.cookie(space))
    except OSError as error:
        return Finding(name, False, f"sk_lookup does not attach: {error}")
    return Finding(name, True, "sk_lookup attaches to a network namespace")


def _dial(space: int, family: socket.AddressFamily, maps: Maps) -> Finding:
    """Dial where no route leads; only a redirect to the listener can make that work."""
    name = "connect hook IPv6" if family is socket.AF_INET6 else "connect hook IPv4"
    wanted = _DIALLED[family]
    listening = netns.listeners(space, maps, ipv6=family is socket.AF_INET6)
    try:
        listener = listening[_LISTENERS[family]]
        listener.settimeout(TIMEOUT)
        with socket.socket(family, socket.SOCK_STREAM) as app:
            app.settimeout(TIMEOUT)
            app.connect((wanted.ip, wanted.port))
            with closing(listener.accept()[0]) as accepted:
                original = sockopt.original_destination(accepted)
            seen = SocketAddress(*app.getpeername()[:2])
    except OSError as error:
        return Finding(name, False, f"dialled {wanted}: {error}")
    finally:
        for each in listening.values():
            each.close()
    if (original, seen) != (wanted, wanted):
        return Finding(name, False, f"dialled {wanted}, proxy told {original}, app told {seen}")
    return Finding(name, True, f"a connection to {wanted} came to the proxy, which knew")


def _families() -> list[socket.AddressFamily]:
    return [socket.AF_INET, socket.AF_INET6] if requirements.ipv6() else [socket.AF_INET]


@contextmanager
def _own_netns() -> Iterator[int]:
    space = netns.open_pid(os.getpid())
    try:
        yield space
    finally:
        os.close(space)


def _main() -> None:
    subprocess.run(["mount", "-t", "bpf", "bpf", str(requirements.BPFFS)], check=True)
    print(json.dumps([asdict(finding) for finding in run(Path(sys.argv[1]))]))


if __name__ == "__main__":
    _main()
