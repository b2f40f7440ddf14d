# SPDX-License-Identifier: Apache-2.0
"""Which connections between pods of this node go without the proxy, and which do so now.

A verdict is good in the generation it was given in, while the agent's lease runs: one write takes
all of them back.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ztunnel.datapath.bpf import layout
from ztunnel.datapath.bpf.layout import DirectState
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
class DirectEntry:
    """A live connection by verdict. `owner` is the cookie of the connecting socket."""

    source: SocketAddress
    destination: SocketAddress
    netns_cookie: int
    destination_cookie: int
    generation: int
    owner: int
    born_ns: int
    state: DirectState


class Verdicts:
    """The maps of verdicts and of the connections by them. Raises FileNotFoundError."""

    def __init__(self, pin_dir: Path, *, read_only: bool = False) -> None:
        def opened(name: str, key_size: int, value: type[ctypes.Structure]) -> RawMap:
            path = pin_dir / "maps" / name
            return RawMap.open(path, key_size, ctypes.sizeof(value), read_only=read_only)

        self._purged = -1  # the generation in which we last did
        self._lease = opened("zt_generation", len(_ZERO), layout.Lease)
        self._verdicts = opened("zt_verdicts", ctypes.sizeof(layout.VerdictKey), layout.Verdict)
        self._direct = opened("zt_direct", ctypes.sizeof(layout.DirectKey), layout.Direct)

    @property
    def generation(self) -> int:
        """What valid verdicts carry; 0 before the first agent."""
        return int(self._read_lease().generation)

    def revoke(self) -> None:
        """Take back every verdict given so far. Connections that are established go on."""
        lease = self._read_lease()
        lease.generation += 1
        self._lease.update(_ZERO, bytes(lease))

    def renew(self, seconds: float) -> None:
        """Verdicts hold for so long from now, unless renewed again."""
        lease = self._read_lease()
        lease.until_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9)
        self._lease.update(_ZERO, bytes(lease))

    def allow(self, verdict: BypassEntry) -> None:
        """Let new connections go without the proxy, as long as the generation lasts."""
        generation = self.generation
        if not generation:
            raise ValueError("no generation yet; call revoke() once before the first verdict")
        key = layout.VerdictKey(netns=verdict.netns_cookie)
        key.ip[:] = layout.packed(verdict.destination.ip)
        key.port[:] = verdict.destination.port.to_bytes(2, "big")
        value = layout.Verdict(generation=generation, dst_netns=verdict.destination_cookie)
        self._verdicts.update(bytes(key), bytes(value))

    def valid(self) -> list[BypassEntry]:
        """The verdicts of this generation."""
        generation = self.generation
        return [
            verdict
            for key, value in self._verdicts.items()
            if layout.Verdict.from_buffer_copy(value).generation == generation
            for verdict in [_verdict(key, value)]
        ]

    def purge(self) -> None:
        """Remove what earlier generations left: memory only, it is void already."""
        generation = self.generation
        if generation == self._purged:
            return
        self._purged = generation
        for key, value in self._verdicts.items():
            if layout.Verdict.from_buffer_copy(value).generation != generation:
                self._verdicts.delete(key)

    def direct(self) -> Iterator[DirectEntry]:
        """The connections by verdict that live now."""
        for key, value in self._direct.items():
            yield _direct_entry(key, value)

    def close(self) -> None:
        """Close every descriptor; the pins keep the maps."""
        for table in (self._lease, self._verdicts, self._direct):
            table.close()

    def _read_lease(self) -> layout.Lease:
        raw = self._lease.lookup(_ZERO)
        return layout.Lease.from_buffer_copy(raw) if raw else layout.Lease()


def _verdict(key: bytes, value: bytes) -> BypassEntry:
    at = layout.VerdictKey.from_buffer_copy(key)
    given = layout.Verdict.from_buffer_copy(value)
    return BypassEntry(
        at.netns, layout.socket_address(bytes(at.ip), bytes(at.port)), given.dst_netns
    )


def _direct_entry(key: bytes, value: bytes) -> DirectEntry:
    at = layout.DirectKey.from_buffer_copy(key)
    entry = layout.Direct.from_buffer_copy(value)
    return DirectEntry(
        source=layout.socket_address(bytes(at.src), bytes(at.sport)),
        destination=layout.socket_address(bytes(at.dst), bytes(at.dport)),
        netns_cookie=entry.netns,
        destination_cookie=entry.dst_netns,
        generation=entry.generation,
        owner=entry.owner,
        born_ns=entry.born_ns,
        state=DirectState(entry.state),
    )
