# SPDX-License-Identifier: Apache-2.0
"""Same-node bypass: entries that allow a connection to bypass the proxy, and the live connections.

An entry is valid in the policy epoch in which it was written, while the agent renews its lease.
Starting the next epoch revokes all entries with one write.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ztunnel.datapath.bpf import layout
from ztunnel.datapath.bpf.layout import SameNodeState
from ztunnel.datapath.bpf.syscall import RawMap
from ztunnel.mesh.model import SocketAddress

_ZERO = bytes(4)


@dataclass(frozen=True)
class BypassEntry:
    """Allows the pod of one netns cookie to connect to an address of another without the proxy."""

    netns_cookie: int
    destination: SocketAddress
    destination_cookie: int


@dataclass(frozen=True)
class SameNodeConnection:
    """A live connection that bypasses the proxy. `owner` is the cookie of the connecting socket."""

    source: SocketAddress
    destination: SocketAddress
    netns_cookie: int
    destination_cookie: int
    epoch: int
    owner: int
    start_ns: int
    state: SameNodeState


class SameNodeMaps:
    """The maps of entries and of live connections. Raises FileNotFoundError if not pinned."""

    def __init__(self, pin_dir: Path, *, read_only: bool = False) -> None:
        def opened(name: str, key_size: int, value: type[ctypes.Structure]) -> RawMap:
            path = pin_dir / "maps" / name
            return RawMap.open(path, key_size, ctypes.sizeof(value), read_only=read_only)

        self._purged = -1  # the epoch of the last purge
        self._lease = opened("zt_policy_epoch", len(_ZERO), layout.PolicyEpoch)
        self._entries = opened(
            "zt_same_node_allow", ctypes.sizeof(layout.SameNodeKey), layout.SameNodeAllow
        )
        self._connections = opened(
            "zt_same_node_conns", ctypes.sizeof(layout.FourTuple), layout.SameNodeConn
        )

    @property
    def epoch(self) -> int:
        """The current policy epoch; 0 before the first agent started."""
        return int(self._read_lease().epoch)

    def revoke(self) -> None:
        """Start the next epoch: revoke all entries. Established connections continue."""
        lease = self._read_lease()
        lease.epoch += 1
        self._lease.update(_ZERO, bytes(lease))

    def renew_lease(self, seconds: float) -> None:
        """Extend the lease to `seconds` from now; without a lease no entry is valid."""
        lease = self._read_lease()
        lease.lease_until_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9)
        self._lease.update(_ZERO, bytes(lease))

    def allow(self, entry: BypassEntry) -> None:
        """Let new connections bypass the proxy in the current epoch. Raises OSError, ValueError."""
        epoch = self.epoch
        if not epoch:
            raise ValueError("no policy epoch; hint: call revoke() before the first allow()")
        key = layout.SameNodeKey(netns=entry.netns_cookie)
        key.ip[:] = layout.packed(entry.destination.ip)
        key.port[:] = entry.destination.port.to_bytes(2, "big")
        value = layout.SameNodeAllow(epoch=epoch, dst_netns=entry.destination_cookie)
        self._entries.update(bytes(key), bytes(value))

    def entries(self) -> list[BypassEntry]:
        """The entries of the current epoch."""
        epoch = self.epoch
        return [
            _bypass_entry(key, value)
            for key, value in self._entries.items()
            if layout.SameNodeAllow.from_buffer_copy(value).epoch == epoch
        ]

    def purge_stale(self) -> None:
        """Delete the entries of earlier epochs, which are invalid, to free memory."""
        epoch = self.epoch
        if epoch == self._purged:
            return
        self._purged = epoch
        for key, value in self._entries.items():
            if layout.SameNodeAllow.from_buffer_copy(value).epoch != epoch:
                self._entries.delete(key)

    def connections(self) -> Iterator[SameNodeConnection]:
        """The live connections that bypass the proxy."""
        for key, value in self._connections.items():
            yield _connection(key, value)

    def close(self) -> None:
        """Close all descriptors; the pins remain."""
        for table in (self._lease, self._entries, self._connections):
            table.close()

    def _read_lease(self) -> layout.PolicyEpoch:
        raw = self._lease.lookup(_ZERO)
        return layout.PolicyEpoch.from_buffer_copy(raw) if raw else layout.PolicyEpoch()


def _bypass_entry(key: bytes, value: bytes) -> BypassEntry:
    parsed_key = layout.SameNodeKey.from_buffer_copy(key)
    allow = layout.SameNodeAllow.from_buffer_copy(value)
    return BypassEntry(
        parsed_key.netns,
        layout.socket_address(bytes(parsed_key.ip), bytes(parsed_key.port)),
        allow.dst_netns,
    )


def _connection(key: bytes, value: bytes) -> SameNodeConnection:
    parsed_key = layout.FourTuple.from_buffer_copy(key)
    entry = layout.SameNodeConn.from_buffer_copy(value)
    return SameNodeConnection(
        source=layout.socket_address(bytes(parsed_key.src), bytes(parsed_key.sport)),
        destination=layout.socket_address(bytes(parsed_key.dst), bytes(parsed_key.dport)),
        netns_cookie=entry.netns,
        destination_cookie=entry.dst_netns,
        epoch=entry.epoch,
        owner=entry.owner,
        start_ns=entry.start_ns,
        state=SameNodeState(entry.state),
    )
