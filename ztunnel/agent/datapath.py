# SPDX-License-Identifier: Apache-2.0
"""The kernel as the agent uses it: an interface, and its implementation on the BPF programs.

The interface allows tests of the agent without root.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ztunnel.datapath import netns, requirements
from ztunnel.datapath.bpf import links
from ztunnel.datapath.bpf.layout import Role
from ztunnel.datapath.bpf.maps import Maps, PodEntry
from ztunnel.datapath.bpf.pins import HeldPins
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent, EventReader
from ztunnel.datapath.gateway_port_map import GatewayPortMap
from ztunnel.datapath.netlink import sock_diag
from ztunnel.datapath.same_node_maps import BypassEntry, SameNodeConnection
from ztunnel.datapath.udp_admission_maps import UdpAdmissionMaps
from ztunnel.datapath.udp_maps import UdpKernelApi
from ztunnel.ipc.gateway_messages import GatewayListenerKind
from ztunnel.ipc.messages import ListenerKind
from ztunnel.ipc.python_process import python_argv

OWN_NETNS = Path("/proc/self/ns/net")


class DataPath(Protocol):
    """Network namespaces, sockets in them, and the maps that let the kernel redirect to these."""

    def cookie(self, netns_fd: int) -> int:
        """The kernel's cookie of a namespace; not reused until reboot."""
        ...

    def listeners(self, netns_fd: int, *, ipv6: bool) -> dict[ListenerKind, socket.socket]:
        """Open the listeners of a pod, all or none. Raises OSError."""
        ...

    def is_listener(self, sock: socket.socket, kind: ListenerKind, cookie: int) -> bool:
        """Whether a socket from a worker is a listener of this kind in this namespace.

        A socket that an earlier, removed data path tagged is not.
        """
        ...

    def gateway_listeners(
        self, netns_fd: int, *, ipv6: bool
    ) -> dict[GatewayListenerKind, socket.socket]:
        """Open the listeners of the gateway process in a gateway pod. Raises OSError."""
        ...

    def admin_sockets(self, netns_fd: int, count: int) -> list[socket.socket]:
        """Open sockets that connect to Envoy's admin port in a gateway pod. Raises OSError."""
        ...

    def is_gateway_listener(
        self, sock: socket.socket, kind: GatewayListenerKind, cookie: int
    ) -> bool:
        """Whether a socket from the gateway process is such a listener in this namespace."""
        ...

    def sockets(
        self, netns_fd: int, family: int, count: int, *, udp: bool = False
    ) -> list[socket.socket]:
        """Open unconnected sockets in a pod, tagged as the proxy's. Raises OSError."""
        ...

    def enrolled(self) -> dict[int, tuple[str, ...]]:
        """The addresses of the pods that the kernel captures, by namespace cookie."""
        ...

    def attached(self) -> set[int]:
        """The cookies of the namespaces whose inbound connections are redirected."""
        ...

    def enroll(self, netns_fd: int, cookie: int, addresses: tuple[str, ...]) -> None:
        """Capture new connections from and to a pod; revokes all bypass entries. Idempotent.

        Raises OSError.
        """
        ...

    def unenroll(self, cookie: int) -> None:
        """Stop capturing a pod; revokes all bypass entries. Idempotent. Raises OSError."""
        ...

    def set_listener(self, address: str, sock: socket.socket) -> None:
        """Deliver inbound connections of a pod's address to `sock` while it is open."""
        ...

    def remove_listener(self, address: str) -> None:
        """Undo `set_listener`."""
        ...

    def set_node_addresses(self, addresses: Iterable[str]) -> None:
        """Connections from these addresses, such as the kubelet's probes, bypass the proxy."""
        ...

    def stats(self) -> dict[str, int]:
        """The counters of the BPF programs, for the admin API and metrics."""
        ...

    # The same-node bypass

    def revoke_bypass(self) -> None:
        """Revoke all bypass entries for new connections."""
        ...

    def renew_bypass_lease(self, seconds: float) -> None:
        """Let the valid entries expire after this time, unless the lease is renewed."""
        ...

    def allow_bypass(self, entry: BypassEntry) -> None:
        """Let new connections of a pair bypass the proxy. Raises OSError."""
        ...

    def purge_stale_bypass(self) -> None:
        """Delete revoked entries."""
        ...

    def bypass_entries(self) -> list[BypassEntry]:
        """The valid entries."""
        ...

    def same_node_connections(self) -> list[SameNodeConnection]:
        """The open connections that bypass the proxy."""
        ...

    def drain_events(self, limit: int) -> list[ConnectionEvent]:
        """The events of bypassed connections, each once."""
        ...

    def terminate(
        self,
        netns_fd: int,
        connection: SameNodeConnection | ConnectionEvent,
        *,
        is_isolated: bool = False,
    ) -> bool:
        """Terminate a bypassed connection; False if it is closed already. Raises OSError.

        `is_isolated`: the kernel has bound its socket to the loopback interface.
        """
        ...


class LoadFailedError(Exception):
    """The loader failed; the text is its error message."""


async def load(cgroup: Path | None, pin_dir: Path) -> str:
    """Run the loader in its own process; returns its summary (see `datapath.bpf.loader`).

    `cgroup` None stands for the cgroup v2 root. Raises LoadFailedError.
    """
    cgroup_option = () if cgroup is None else ("--cgroup", str(cgroup))
    process = await asyncio.create_subprocess_exec(
        *python_argv("ztunnel.main", "loader", *cgroup_option, "--pin-dir", str(pin_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        message = errors.decode(errors="replace").strip() or f"exit status {process.returncode}"
        raise LoadFailedError(message.removeprefix("Error: "))
    return output.decode().strip()


class KernelDataPath:
    """The data path on the maps and programs that the loader pinned."""

    def __init__(self, pin_dir: Path) -> None:
        self._pin_dir = pin_dir
        self.pins = HeldPins(pin_dir)
        self._maps = Maps(pin_dir)
        self._events = EventReader(pin_dir)
        self.udp_admission = UdpAdmissionMaps(pin_dir, self._maps)
        self.udp = UdpKernelApi(pin_dir, self._maps, self.udp_admission)
        self.gateway_ports = GatewayPortMap(pin_dir)
        self._maps.same_node.revoke()  # this agent has not validated an earlier agent's entries

    def find_node(self, cgroup: Path) -> bool:
        """Identify the node's connections by socket, if the hooks at `cgroup` see its processes.

        Otherwise (False) they are identified by the node's addresses only. Call it in the node's
        network namespace.
        """
        sees_node = requirements.contains_init_process(cgroup)
        with OWN_NETNS.open() as own:
            self._maps.set_node_netns(netns.cookie(own.fileno()) if sees_node else 0)
        return sees_node

    def cookie(self, netns_fd: int) -> int:
        return netns.cookie(netns_fd)

    def listeners(self, netns_fd: int, *, ipv6: bool) -> dict[ListenerKind, socket.socket]:
        return netns.open_listeners(netns_fd, self._maps, ipv6=ipv6)

    def is_listener(self, sock: socket.socket, kind: ListenerKind, cookie: int) -> bool:
        if not netns.is_listener(sock, kind, cookie):
            return False
        # An untagged resolver socket belongs to maps that no program uses any more.
        return not kind.is_query or self._maps.socket_role(sock) is Role.RESOLVER

    def gateway_listeners(
        self, netns_fd: int, *, ipv6: bool
    ) -> dict[GatewayListenerKind, socket.socket]:
        return netns.open_gateway_listeners(netns_fd, ipv6=ipv6)

    def admin_sockets(self, netns_fd: int, count: int) -> list[socket.socket]:
        return netns.admin_sockets(netns_fd, count)

    def is_gateway_listener(
        self, sock: socket.socket, kind: GatewayListenerKind, cookie: int
    ) -> bool:
        return netns.is_gateway_listener(sock, kind, cookie)

    def sockets(
        self, netns_fd: int, family: int, count: int, *, udp: bool = False
    ) -> list[socket.socket]:
        open_sockets = netns.udp_sockets if udp else netns.tcp_sockets
        return open_sockets(netns_fd, family, count, self._maps)

    def enrolled(self) -> dict[int, tuple[str, ...]]:
        return {entry.netns_cookie: entry.addresses for entry in self._maps.pods()}

    def attached(self) -> set[int]:
        return set(links.sk_lookup_cookies(self._pin_dir))

    def enroll(self, netns_fd: int, cookie: int, addresses: tuple[str, ...]) -> None:
        pin = links.pod_pin(self._pin_dir, cookie)
        self._maps.enroll(PodEntry(cookie, addresses))
        self.pins.restore(links.sk_lookup_pin(self._pin_dir))
        self.pins.restore(pin)
        links.attach_sk_lookup(self._pin_dir, netns_fd, cookie)
        self.pins.hold(pin)

    def unenroll(self, cookie: int) -> None:
        self._maps.unenroll(cookie)
        self.udp.remove(cookie)
        pin = links.pod_pin(self._pin_dir, cookie)
        self.pins.restore(pin)
        links.detach_sk_lookup(self._pin_dir, cookie)
        self.pins.release(pin)

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
            "udp_redirected": sum(each.redirected for each in counters),
            "udp_no_worker": sum(each.refused for each in counters),
            "udp_strict": sum(each.strict for each in counters),
        }

    def revoke_bypass(self) -> None:
        self._maps.same_node.revoke()

    def renew_bypass_lease(self, seconds: float) -> None:
        self._maps.same_node.renew_lease(seconds)

    def allow_bypass(self, entry: BypassEntry) -> None:
        self._maps.same_node.allow(entry)

    def purge_stale_bypass(self) -> None:
        self._maps.same_node.purge_stale()

    def bypass_entries(self) -> list[BypassEntry]:
        return self._maps.same_node.entries()

    def same_node_connections(self) -> list[SameNodeConnection]:
        return list(self._maps.same_node.connections())

    def drain_events(self, limit: int) -> list[ConnectionEvent]:
        return self._events.drain(limit)

    def terminate(
        self,
        netns_fd: int,
        connection: SameNodeConnection | ConnectionEvent,
        *,
        is_isolated: bool = False,
    ) -> bool:
        return sock_diag.destroy(
            netns_fd,
            connection.source,
            connection.destination,
            connection.owner,
            interface=sock_diag.LOOPBACK_IFINDEX if is_isolated else 0,
        )

    def close(self) -> None:
        """Close the descriptors; the pins stay."""
        self._events.close()
        self.udp.close()
        self.gateway_ports.close()
        self.udp_admission.close()
        self._maps.close()
        self.pins.close()
