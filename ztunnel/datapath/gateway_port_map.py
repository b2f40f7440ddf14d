# SPDX-License-Identifier: Apache-2.0
"""The ports of gateway pods that are not captured: the map zt_gateway_ports."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ztunnel.datapath.bpf import layout
from ztunnel.datapath.bpf.syscall import RawMap

_PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP}
_NAMES = {int(number): name for name, number in _PROTOCOLS.items()}


class OpenPort(NamedTuple):
    """A port at an address (canonical) of a pod. `protocol`: TCP or UDP."""

    address: str
    port: int
    protocol: str


class GatewayPortMap:
    """The open ports. Raises FileNotFoundError if the map is not pinned."""

    def __init__(self, pin_dir: Path, *, read_only: bool = False) -> None:
        self._map = RawMap.open(
            pin_dir / "maps" / "zt_gateway_ports",
            ctypes.sizeof(layout.GatewayPortKey),
            ctypes.sizeof(layout.GatewayPort),
            read_only=read_only,
        )

    def ports(self) -> dict[OpenPort, int]:
        """The open ports, and what they admitted: connections or datagrams."""
        return {
            _port(key): int(layout.GatewayPort.from_buffer_copy(value).admitted)
            for key, value in self._map.items()
        }

    def open(self, port: OpenPort) -> None:
        """Stop capturing what arrives at a port. Raises OSError (E2BIG if the map is full)."""
        self._map.update(_key(port), bytes(layout.GatewayPort()))

    def close_ports(self, ports: Iterable[OpenPort]) -> None:
        """Capture new connections to these ports again."""
        for port in ports:
            self._map.delete(_key(port))

    def close(self) -> None:
        """Close the descriptor; the pin remains."""
        self._map.close()


def _key(port: OpenPort) -> bytes:
    key = layout.GatewayPortKey(protocol=_PROTOCOLS[port.protocol])
    key.ip[:] = layout.packed(port.address)
    key.port[:] = port.port.to_bytes(2, "big")
    return bytes(key)


def _port(raw: bytes) -> OpenPort:
    key = layout.GatewayPortKey.from_buffer_copy(raw)
    address = layout.socket_address(bytes(key.ip), bytes(key.port))
    return OpenPort(address.ip, address.port, _NAMES.get(key.protocol, str(key.protocol)))
