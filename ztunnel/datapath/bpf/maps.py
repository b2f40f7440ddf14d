# SPDX-License-Identifier: Apache-2.0
"""Typed operations on the pinned maps: the agent writes, ztctl reads."""

from __future__ import annotations

import ctypes
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ztunnel.datapath.bpf import layout
from ztunnel.datapath.bpf.layout import Role, Stat
from ztunnel.datapath.bpf.syscall import RawMap, possible_cpus
from ztunnel.datapath.same_node_maps import SameNodeMaps
from ztunnel.mesh.model import SocketAddress

_INT_BYTES = 4
_COOKIE_BYTES = 8
_ADDRESS_BYTES = 16


@dataclass(frozen=True)
class PodEntry:
    """An enrolled pod: netns cookie and one address per family."""

    netns_cookie: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class FlowEntry:
    """A live connection between an app and the proxy, from the connecting side.

    `role` REDIRECTED: `address` is the original destination. PROXY: `address` is the client of a
    connection from the proxy to the app. `start_ns` is in nanoseconds of CLOCK_MONOTONIC.
    """

    netns_cookie: int
    source: SocketAddress
    port: int
    role: Role
    address: SocketAddress
    owner: int
    start_ns: int


@dataclass(frozen=True)
class PodCounters:
    """Counters of the connect hooks for one pod since it was enrolled."""

    redirected: int
    proxy_originated: int
    refused: int
    local: int
    same_node_bypass: int = 0
    dns: int = 0


class Maps:
    """All maps under one pin directory.

    Raises FileNotFoundError if nothing is pinned there. `read_only` opens every map without write
    access, for inspection.
    """

    def __init__(self, pin_dir: Path, *, read_only: bool = False) -> None:
        def opened(name: str, key_size: int, value_size: int) -> RawMap:
            path = pin_dir / "maps" / name
            return RawMap.open(path, key_size, value_size, read_only=read_only)

        self._cpus = possible_cpus()
        self._pods = opened("zt_pods", _COOKIE_BYTES, ctypes.sizeof(layout.Pod))
        self._pod_stats = opened("zt_pod_stats", _COOKIE_BYTES, ctypes.sizeof(layout.PodStats))
        self._flows = opened("zt_flows", ctypes.sizeof(layout.FlowKey), ctypes.sizeof(layout.Flow))
        self._node_addrs = opened("zt_node_addrs", _ADDRESS_BYTES, 1)
        self._stats = opened("zt_stats", _INT_BYTES, 8 * self._cpus)
        self.same_node = SameNodeMaps(pin_dir, read_only=read_only)
        self._read_only = read_only
        if not read_only:
            self._sockets = opened("zt_socks", _INT_BYTES, ctypes.sizeof(layout.Sock))
            self._listeners = opened("zt_listeners", _ADDRESS_BYTES, 8)
            self._node_netns = opened("zt_node_netns", _INT_BYTES, _COOKIE_BYTES)

    def enroll(self, entry: PodEntry) -> None:
        """Redirect new connections of this netns to the proxy. Revokes all bypass entries.

        Raises OSError (E2BIG if there are too many pods).
        """
        value = layout.Pod()
        for ip in entry.addresses:
            raw = ip_address(ip).packed
            if len(raw) == 4:
                value.ip4[:] = raw
            else:
                value.ip6[:] = raw
        key = entry.netns_cookie.to_bytes(_COOKIE_BYTES, sys.byteorder)
        self.same_node.revoke()
        self._pods.update(key, bytes(value))  # first: without counters, the programs redirect too
        if self._pod_stats.lookup(key) is None:
            self._pod_stats.update(key, bytes(layout.PodStats()))

    def unenroll(self, netns_cookie: int) -> bool:
        """Stop redirecting connections of this netns; False if it was not enrolled.

        Revokes all bypass entries.
        """
        self.same_node.revoke()
        key = netns_cookie.to_bytes(_COOKIE_BYTES, sys.byteorder)
        was = self._pods.delete(key)
        self._pod_stats.delete(key)
        return was

    def pods(self) -> list[PodEntry]:
        """The enrolled pods, by cookie."""
        found = [_pod_entry(key, value) for key, value in self._pods.items()]
        return sorted(found, key=lambda pod: pod.netns_cookie)

    def pod_stats(self) -> dict[int, PodCounters]:
        """Counters by netns cookie."""
        return {
            int.from_bytes(key, sys.byteorder): _counters(value)
            for key, value in self._pod_stats.items()
        }

    def flows(self) -> list[FlowEntry]:
        """The live connections, oldest first."""
        found = [_flow_entry(key, value) for key, value in self._flows.items()]
        return sorted(found, key=lambda flow: flow.start_ns)

    def flow_count(self) -> int:
        """The number of entries in zt_flows."""
        return self._flows.count()

    def stats(self) -> dict[str, int]:
        """Counters of the node by lower-case name."""
        return {stat.name.lower(): self._stat(stat) for stat in Stat}

    def _stat(self, stat: Stat) -> int:
        raw = self._stats.lookup(int(stat).to_bytes(_INT_BYTES, sys.byteorder)) or b""
        return sum(int.from_bytes(raw[at : at + 8], sys.byteorder) for at in range(0, len(raw), 8))

    def set_node_netns(self, cookie: int) -> None:
        """Identify the node's own connections by sockets of this namespace, not only by address.

        0: by address only.
        """
        self._node_netns.update(bytes(_INT_BYTES), cookie.to_bytes(_COOKIE_BYTES, sys.byteorder))

    def set_node_addresses(self, addresses: Iterable[str]) -> None:
        """Set the node's addresses; connections from them (kubelet probes) bypass the proxy.

        Raises OSError (E2BIG if there are too many); connections from an address that is missing
        are authorized like those from outside.
        """
        wanted = {layout.packed(ip) for ip in addresses}
        present = set(self._node_addrs.keys())
        for key in present - wanted:  # first: a former address must not remain trusted
            self._node_addrs.delete(key)
        for key in wanted - present:
            self._node_addrs.update(key, b"\1")

    def node_addresses(self) -> list[str]:
        """The node's addresses."""
        return sorted(layout.unpacked(key) for key in set(self._node_addrs.keys()))

    def set_listener(self, address: str, listener: socket.socket) -> None:
        """Redirect inbound connections to `address` to `listener` while it is open."""
        value = listener.fileno().to_bytes(8, sys.byteorder)
        self._listeners.update(layout.packed(address), value)

    def remove_listener(self, address: str) -> bool:
        """Undo `set_listener`; False if there was none."""
        return self._listeners.delete(layout.packed(address))

    def tag_proxy(self, sock: socket.socket) -> None:
        """Tag a socket as the proxy's: the connect hooks do not redirect it."""
        self._tag(sock, Role.PROXY)

    def tag_resolver(self, sock: socket.socket) -> None:
        """Tag a UDP socket as a resolver: it receives the pod's DNS queries."""
        self._tag(sock, Role.RESOLVER)

    def _tag(self, sock: socket.socket, role: Role) -> None:
        value = layout.Sock(role=role)
        self._sockets.update(sock.fileno().to_bytes(_INT_BYTES, sys.byteorder), bytes(value))

    def socket_role(self, sock: socket.socket) -> Role:
        """The role of a socket; for tests and diagnosis."""
        raw = self._sockets.lookup(sock.fileno().to_bytes(_INT_BYTES, sys.byteorder))
        return Role(layout.Sock.from_buffer_copy(raw).role) if raw else Role.NONE

    def close(self) -> None:
        """Close all descriptors; the pins remain."""
        for name in ("_pods", "_pod_stats", "_flows", "_node_addrs", "_stats"):
            getattr(self, name).close()
        self.same_node.close()
        if not self._read_only:
            self._sockets.close()
            self._listeners.close()


def _pod_entry(key: bytes, value: bytes) -> PodEntry:
    pod = layout.Pod.from_buffer_copy(value)
    ip4, ip6 = bytes(pod.ip4), bytes(pod.ip6)
    addresses = [str(ip_address(raw)) for raw in (ip4, ip6) if any(raw)]
    return PodEntry(int.from_bytes(key, sys.byteorder), tuple(addresses))


def _counters(value: bytes) -> PodCounters:
    raw = layout.PodStats.from_buffer_copy(value)
    return PodCounters(
        raw.redirected, raw.proxy_originated, raw.refused, raw.local, raw.same_node_bypass, raw.dns
    )


def _flow_entry(key: bytes, value: bytes) -> FlowEntry:
    parsed_key = layout.FlowKey.from_buffer_copy(key)
    flow = layout.Flow.from_buffer_copy(value)
    return FlowEntry(
        netns_cookie=parsed_key.netns,
        source=layout.socket_address(bytes(parsed_key.ip), bytes(parsed_key.sport)),
        port=int.from_bytes(bytes(parsed_key.dport), "big"),
        role=Role(flow.sock.role),
        address=layout.socket_address(bytes(flow.sock.ip), bytes(flow.sock.port)),
        owner=flow.owner,
        start_ns=flow.start_ns,
    )
