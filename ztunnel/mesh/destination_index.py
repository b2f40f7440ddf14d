# SPDX-License-Identifier: Apache-2.0
"""Finds the ServiceEntry host that covers a destination.

A host covers the addresses of its endpoints, and the CIDRs of an entry without endpoints. Both are
networks in one hash table, keyed by namespace, prefix length, network and port. Networks are parsed
once, when a host changes, so a lookup costs two hash lookups per prefix length in use, however many
entries there are. A waypoint is one more viewer, of the hosts that it is in front of. The longest
prefix wins; among equals, an entry that is exported to named
namespaces, then the host that was added last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from ztunnel.mesh.model import Service, SocketAddress

_ALL_NAMESPACES = ""
_BITS = {4: 32, 6: 128}


class _Key(NamedTuple):
    """A destination as one viewer sees it; `number` is the network shifted to its prefix.

    `namespace`: the viewer, which may also be a waypoint.
    """

    namespace: str
    version: int  # 4 or 6
    length: int  # of the prefix, in bits
    number: int
    port: int


class DestinationIndex:
    """The destinations of all ServiceEntry hosts."""

    def __init__(self) -> None:
        self._hosts: dict[_Key, dict[str, Service]] = {}  # by Service.key, the latest one last
        self._keys_of: dict[str, tuple[_Key, ...]] = {}  # by Service.key
        self._use: dict[int, Counter[int]] = {4: Counter(), 6: Counter()}  # of prefix lengths
        self._lengths: dict[int, tuple[int, ...]] = {4: (), 6: ()}  # longest first

    def put(self, service: Service) -> None:
        """Add a ServiceEntry host, or replace the one with the same key."""
        keys = tuple(dict.fromkeys(_keys(service)))
        if keys == self._keys_of.get(service.key, ()):
            for key in keys:
                self._hosts[key][service.key] = service
            return
        self.remove(service.key)
        if keys:
            self._keys_of[service.key] = keys
        for key in keys:
            self._hosts.setdefault(key, {})[service.key] = service
            self._use[key.version][key.length] += 1
        self._update_lengths()

    def remove(self, name: str) -> None:
        """Remove the host with this Service.key, if present."""
        for key in self._keys_of.pop(name, ()):
            hosts = self._hosts[key]
            del hosts[name]
            if not hosts:
                del self._hosts[key]
            self._use[key.version][key.length] -= 1
        self._update_lengths()

    def find(self, address: SocketAddress, namespace: str) -> Service | None:
        """Return the host that covers a destination, as visible to a namespace."""
        return self._find(address, (namespace, _ALL_NAMESPACES))

    def find_of_waypoint(self, address: SocketAddress, waypoint: str) -> Service | None:
        """Return the host that covers a destination and has this waypoint (`namespace/name`)."""
        return self._find(address, (_waypoint_viewer(waypoint),))

    def _find(self, address: SocketAddress, viewers: tuple[str, ...]) -> Service | None:
        version = 6 if ":" in address.ip else 4
        lengths = self._lengths[version]
        if not lengths:
            return None
        bits = _BITS[version]
        number = int(ip_address(address.ip))
        for length in lengths:
            prefix = number >> (bits - length)
            for viewer in viewers:
                hosts = self._hosts.get(_Key(viewer, version, length, prefix, address.port))
                if hosts:
                    return next(reversed(hosts.values()))
        return None

    def _update_lengths(self) -> None:
        for version, use in self._use.items():
            self._lengths[version] = tuple(
                sorted((each for each in use if use[each]), reverse=True)
            )


def _keys(service: Service) -> Iterator[_Key]:
    viewers = service.export_to or (_ALL_NAMESPACES,)
    if service.waypoint:
        viewers = (*viewers, _waypoint_viewer(service.waypoint))
    for version, length, number, port in _destinations(service):
        for viewer in viewers:
            yield _Key(viewer, version, length, number, port)


def _waypoint_viewer(waypoint: str) -> str:
    return f"waypoint {waypoint}"  # no namespace: their names have no spaces


def _destinations(service: Service) -> Iterator[tuple[int, int, int, int]]:
    for endpoint in service.endpoints:
        address = ip_address(endpoint.address)
        for port in endpoint.ports.values():
            yield address.version, _BITS[address.version], int(address), port
    for text in service.networks:
        network = ip_network(text)
        number = int(network.network_address) >> (_BITS[network.version] - network.prefixlen)
        for service_port in service.ports:
            yield network.version, network.prefixlen, number, service_port.port
