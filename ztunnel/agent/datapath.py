# SPDX-License-Identifier: Apache-2.0
"""What the agent needs of the kernel, as an interface, and its implementation on our BPF programs.

The interface exists so that the reconciler is tested without root.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ztunnel.datapath import netns, requirements
from ztunnel.datapath.bpf import links
from ztunnel.datapath.bpf.maps import Maps, PodEntry
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent, EventReader
from ztunnel.datapath.netlink import sock_diag
from ztunnel.datapath.same_node_maps import BypassEntry, SameNodeConnection
from ztunnel.datapath.udp_admission_maps import UdpAdmissionMaps
from ztunnel.datapath.udp_maps import UdpKernelApi
from ztunnel.ipc.messages import ListenerKind

OWN_NETNS = Path("/proc/self/ns/net")


class DataPath(Protocol):
    """Namespaces, sockets in them, and the maps that make the kernel redirect to those."""

    def cookie(self, netns_fd: int) -> int:
        """What the kernel calls a namespace; never used twice until reboot."""
        ...

    def listeners(self, netns_fd: int, *, ipv6: bool) -> dict[ListenerKind, socket.socket]:
        """New listeners in a pod, all or none. Raises OSError."""
        ...

    def is_listener(self, sock: socket.socket, kind: ListenerKind, cookie: int) -> bool:
        """Whether a socket that a worker shows is what it says, in the namespace it says."""
        ...

    def sockets(
        self, netns_fd: int, family: int, count: int, *, udp: bool = False
    ) -> list[socket.socket]:
        """Unconnected sockets in a pod, tagged as the proxy's. Raises OSError."""
        ...

    def enrolled(self) -> dict[int, tuple[str, ...]]:
        """Addresses by namespace cookie of the pods that the kernel captures now."""
        ...

    def attached(self) -> set[int]:
        """Cookies of the namespaces whose inbound connections are stolen now."""
        ...

    def enrol(self, netns_fd: int, cookie: int, addresses: tuple[str, ...]) -> None:
        """Capture new connections from and to a pod. Idempotent. Raises OSError."""
        ...

    def unenrol(self, cookie: int) -> None:
        """Leave a pod alone from now on. Idempotent."""
        ...

    def set_listener(self, address: str, sock: socket.socket) -> None:
        """Give inbound connections of a pod's address to `sock` while it is open."""
        ...

    def remove_listener(self, address: str) -> None:
        """Undo `set_listener`."""
        ...

    def set_node_addresses(self, addresses: Iterable[str]) -> None:
        """Whose connections reach the app directly: the kubelet's probes."""
        ...

    def stats(self) -> dict[str, int]:
        """Counters for people."""
        ...

    # Connections between pods of this node without the proxy

    def revoke_verdicts(self) -> None:
        """Every verdict given so far is void for new connections. So is each by enrol, unenrol."""
        ...

    def renew_verdicts(self, seconds: float) -> None:
        """Verdicts hold for so long from now, if not renewed again."""
        ...

    def give_verdict(self, verdict: BypassEntry) -> None:
        """New connections of a pod to a destination go without the proxy. Raises OSError."""
        ...

    def purge_verdicts(self) -> None:
        """Free the memory of void ones."""
        ...

    def verdicts(self) -> list[BypassEntry]:
        """Those that hold."""
        ...

    def direct(self) -> list[SameNodeConnection]:
        """The connections by verdict that live now."""
        ...

    def ended(self, most: int) -> list[ConnectionEvent]:
        """What the kernel tells of connections by verdict, each once."""
        ...

    def destroy(
        self,
        netns_fd: int,
        connection: SameNodeConnection | ConnectionEvent,
        *,
        is_cut_off: bool = False,
    ) -> bool:
        """End a connection by verdict; False when it is over already. Raises OSError."""
        ...


class LoadFailedError(Exception):
    """The loader process could not bring up the data path; the text is what it said."""


async def load(cgroup: Path | None, pin_dir: Path) -> str:
    """Run the loader in a process of its own; what it says it did (see `datapath.loader`).

    `cgroup` None is the cgroup v2 root. Raises LoadFailedError.
    """
    where = () if cgroup is None else ("--cgroup", str(cgroup))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ztunnel.main", "loader"),
        *(*where, "--pin-dir", str(pin_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        said = errors.decode(errors="replace").strip() or f"exit status {process.returncode}"
        raise LoadFailedError(said.removeprefix("Error: "))
    return output.decode().strip()


class KernelDataPath:
    """The real one, on what the loader pinned."""

    def __init__(self, pin_dir: Path) -> None:
        self._pin_dir = pin_dir
        self._maps = Maps(pin_dir)
        self._events = EventReader(pin_dir)
        self.udp_entry = UdpAdmissionMaps(pin_dir, self._maps)
        self.udp = UdpKernelApi(pin_dir, self._maps, self.udp_entry)
        self._maps.same_node.revoke()  # what an earlier agent believed is not ours to vouch for

    def find_node(self, cgroup: Path) -> bool:
        """Tell the node's own connections by their sockets, if hooks at `cgroup` see them made.

        Called in the node's network namespace; False when its addresses alone must do.
        """
        seen = requirements.contains_init_process(cgroup)
        with OWN_NETNS.open() as own:
            self._maps.set_node_netns(netns.cookie(own.fileno()) if seen else 0)
        return seen

    def cookie(self, netns_fd: int) -> int:
        return netns.cookie(netns_fd)

    def listeners(self, netns_fd: int, *, ipv6: bool) -> dict[ListenerKind, socket.socket]:
        return netns.open_listeners(netns_fd, self._maps, ipv6=ipv6)

    def is_listener(self, sock: socket.socket, kind: ListenerKind, cookie: int) -> bool:
        return netns.is_listener(sock, kind, cookie)

    def sockets(
        self, netns_fd: int, family: int, count: int, *, udp: bool = False
    ) -> list[socket.socket]:
        make = netns.udp_sockets if udp else netns.tcp_sockets
        return make(netns_fd, family, count, self._maps)

    def enrolled(self) -> dict[int, tuple[str, ...]]:
        return {entry.netns_cookie: entry.addresses for entry in self._maps.pods()}

    def attached(self) -> set[int]:
        return set(links.sk_lookup_cookies(self._pin_dir))

    def enrol(self, netns_fd: int, cookie: int, addresses: tuple[str, ...]) -> None:
        self._maps.enroll(PodEntry(cookie, addresses))
        links.attach_sk_lookup(self._pin_dir, netns_fd, cookie)

    def unenrol(self, cookie: int) -> None:
        self._maps.unenroll(cookie)
        self.udp.remove(cookie)
        links.detach_sk_lookup(self._pin_dir, cookie)

    def set_listener(self, address: str, sock: socket.socket) -> None:
        self._maps.set_listener(address, sock)

    def remove_listener(self, address: str) -> None:
        self._maps.remove_listener(address)

    def set_node_addresses(self, addresses: Iterable[str]) -> None:
        self._maps.set_node_addresses(addresses)

    def stats(self) -> dict[str, int]:
        return {**self._maps.stats(), "flows": self._maps.flow_count(), **self._udp_stats()}

    def _udp_stats(self) -> dict[str, int]:
        counters = self.udp.counters().values()
        return {
            "udp_redirected": sum(one.redirected for one in counters),
            "udp_no_worker": sum(one.refused for one in counters),
            "udp_strict": sum(one.strict for one in counters),
        }

    def revoke_verdicts(self) -> None:
        self._maps.same_node.revoke()

    def renew_verdicts(self, seconds: float) -> None:
        self._maps.same_node.renew_lease(seconds)

    def give_verdict(self, verdict: BypassEntry) -> None:
        self._maps.same_node.allow(verdict)

    def purge_verdicts(self) -> None:
        self._maps.same_node.purge_stale()

    def verdicts(self) -> list[BypassEntry]:
        return self._maps.same_node.entries()

    def direct(self) -> list[SameNodeConnection]:
        return list(self._maps.same_node.connections())

    def ended(self, most: int) -> list[ConnectionEvent]:
        return self._events.drain(most)

    def destroy(
        self,
        netns_fd: int,
        connection: SameNodeConnection | ConnectionEvent,
        *,
        is_cut_off: bool = False,
    ) -> bool:
        return sock_diag.destroy(
            netns_fd,
            connection.source,
            connection.destination,
            connection.owner,
            interface=sock_diag.LOOPBACK_IFINDEX if is_cut_off else 0,
        )

    def close(self) -> None:
        """Close the descriptors; the pins stay."""
        self._events.close()
        self.udp.close()
        self.udp_entry.close()
        self._maps.close()
