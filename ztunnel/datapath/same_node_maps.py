# SPDX-License-Identifier: Apache-2.0
"""Which connections between pods of this node go without the proxy, and which do so now.

A verdict is good in the epoch it was given in, while the agent's lease runs: one write takes
all of them back.
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
    """The pod of one netns cookie may connect to an address of the pod of another."""

    netns_cookie: int
    destination: SocketAddress
    destination_cookie: int


@dataclass(frozen=True)
class SameNodeConnection:
    """A live connection by verdict. `owner` is the cookie of the connecting socket."""

    source: SocketAddress
    destination: SocketAddress
    netns_cookie: int
    destination_cookie: int
    epoch: int
    owner: int
    start_ns: int
    state: SameNodeState


class SameNodeMaps:
    """The maps of verdicts and of the connections by them. Raises FileNotFoundError."""

    def __init__(self, pin_dir: Path, *, read_only: bool = False) -> None:
        def opened(name: str, key_size: int, value: type[ctypes.Structure]) -> RawMap:
            path = pin_dir / "maps" / name
            return RawMap.open(path, key_size, ctypes.sizeof(value), read_only=read_only)

        self._purged = -1  # the epoch in which we last did
        self._lease = opened("zt_policy_epoch", len(_ZERO), layout.PolicyEpoch)
        self._entries = opened(
            "zt_same_node_allow", ctypes.sizeof(layout.SameNodeKey), layout.SameNodeAllow
        )
        self._connections = opened(
            "zt_same_node_conns", ctypes.sizeof(layout.FourTuple), layout.SameNodeConn
        )

    @property
    def epoch(self) -> int:
        """What valid verdicts carry; 0 before the first agent."""
        return int(self._read_lease().epoch)

    def revoke(self) -> None:
        """Take back every verdict given so far. Connections that are established go on."""
        lease = self._read_lease()
        lease.epoch += 1
        self._lease.update(_ZERO, bytes(lease))

    def renew_lease(self, seconds: float) -> None:
        """Verdicts hold for so long from now, unless renewed again."""
        lease = self._read_lease()
        lease.lease_until_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9)
        self._lease.update(_ZERO, bytes(lease))

    def allow(self, verdict: BypassEntry) -> None:
        """Let new connections go without the proxy, as long as the epoch lasts."""
        epoch = self.epoch
        if not epoch:
            raise ValueError("no epoch yet; call revoke() once before the first verdict")
        key = layout.SameNodeKey(netns=verdict.netns_cookie)
        key.ip[:] = layout.packed(verdict.destination.ip)
        key.port[:] = verdict.destination.port.to_bytes(2, "big")
        value = layout.SameNodeAllow(epoch=epoch, dst_netns=verdict.destination_cookie)
        self._entries.update(bytes(key), bytes(value))

    def entries(self) -> list[BypassEntry]:
        """The verdicts of this epoch."""
        epoch = self.epoch
        return [
            verdict
            for key, value in self._entries.items()
            if layout.SameNodeAllow.from_buffer_copy(value).epoch == epoch
            for verdict in [_verdict(key, value)]
        ]

    def purge_stale(self) -> None:
        """Remove what earlier generations left: memory only, it is void already."""
        epoch = self.epoch
        if epoch == self._purged:
            return
        self._purged = epoch
        for key, value in self._entries.items():
            if layout.SameNodeAllow.from_buffer_copy(value).epoch != epoch:
                self._entries.delete(key)

    def connections(self) -> Iterator[SameNodeConnection]:
        """The connections by verdict that live now."""
        for key, value in self._connections.items():
            yield _direct_entry(key, value)

    def close(self) -> None:
        """Close every descriptor; the pins keep the maps."""
        for table in (self._lease, self._entries, self._connections):
            table.close()

    def _read_lease(self) -> layout.PolicyEpoch:
        raw = self._lease.lookup(_ZERO)
        return layout.PolicyEpoch.from_buffer_copy(raw) if raw else layout.PolicyEpoch()


def _verdict(key: bytes, value: bytes) -> BypassEntry:
    at = layout.SameNodeKey.from_buffer_copy(key)
    given = layout.SameNodeAllow.from_buffer_copy(value)
    return BypassEntry(
        at.netns, layout.socket_address(bytes(at.ip), bytes(at.port)), given.dst_netns
    )


def _direct_entry(key: bytes, value: bytes) -> SameNodeConnection:
    at = layout.FourTuple.from_buffer_copy(key)
    entry = layout.SameNodeConn.from_buffer_copy(value)
    return SameNodeConnection(
        source=layout.socket_address(bytes(at.src), bytes(at.sport)),
        destination=layout.socket_address(bytes(at.dst), bytes(at.dport)),
        netns_cookie=entry.netns,
        destination_cookie=entry.dst_netns,
        epoch=entry.epoch,
        owner=entry.owner,
        start_ns=entry.start_ns,
        state=SameNodeState(entry.state),
    )
