# SPDX-License-Identifier: Apache-2.0
"""Encodes resources for delta ADS, and caches the encoded parts by content.

A listener has one filter chain per destination, a route configuration one virtual host per name.
These parts are encoded on their own: a change of one of 500 chains encodes one chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from ztunnel.gateway.xds import wire
from ztunnel.gateway.xds.descriptors import TYPE_PREFIX, EncodeError, EnvoyApi

CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"

VERSION_BYTES = 12  # of the content's hash
MAX_RESOURCE_BYTES = 32 << 20

# By type: field with the parts, its number, their message, the field that names a part.
_PARTS = {
    LISTENER: ("filter_chains", 3, "envoy.config.listener.v3.FilterChain", "name"),
    ROUTES: ("virtual_hosts", 2, "envoy.config.route.v3.VirtualHost", "name"),
}

_json = msgspec.json.Encoder()


@dataclass(frozen=True)
class Resource:
    """A resource that Envoy may get: serialized, with a version that is a hash of its content.

    `head` is everything but the parts. `parts` are serialized by name, in order; their field has
    the number `part_field`. `endpoints`: of a cluster, the name of its ClusterLoadAssignment.
    """

    type_url: str
    name: str
    head: bytes
    parts: Mapping[str, bytes]
    part_field: int = 0
    endpoints: str = ""

    @cached_property
    def version(self) -> str:
        digest = hashlib.blake2b(self.head, digest_size=VERSION_BYTES)
        for name, part in self.parts.items():
            digest.update(wire.text(1, name) + wire.field(2, part))
        return digest.hexdigest()

    @cached_property
    def size(self) -> int:
        """Bytes, roughly."""
        return len(self.head) + sum(map(len, self.parts.values()))

    def envelope(self) -> bytes:
        """As envoy.service.discovery.v3.Resource: version 1, resource 2 (Any), name 3."""
        body = self.head + wire.repeated(self.part_field, self.parts.values())
        packed = wire.text(1, self.type_url) + wire.field(2, body)
        return wire.text(1, self.version) + wire.field(2, packed) + wire.text(3, self.name)


@dataclass(frozen=True)
class Invalid:
    """A resource that does not conform to Envoy's API: a defect of the compiler."""

    type_url: str
    name: str
    message: str


Config = Mapping[str, Mapping[str, Resource]]  # by type URL and name


class ResourceEncoder:
    """One per gateway: its cache has what the last configuration needed."""

    def __init__(self, api: EnvoyApi) -> None:
        self._api = api
        self._cache: dict[bytes, bytes] = {}
        self._used: dict[bytes, bytes] = {}

    def encode(
        self, resources: Mapping[str, Mapping[str, Mapping[str, Any]]]
    ) -> tuple[dict[str, dict[str, Resource]], list[Invalid]]:
        """Encode proto3 JSON by type URL and name. An invalid resource or part is left out.

        A type URL may lack `type.googleapis.com/`.
        """
        config: dict[str, dict[str, Resource]] = {}
        invalid: list[Invalid] = []
        self._used = {}
        for url, named in resources.items():
            type_url = url if url.startswith(TYPE_PREFIX) else TYPE_PREFIX + url
            group = config.setdefault(type_url, {})
            for name, value in named.items():
                try:
                    group[name] = self._resource(type_url, name, value, invalid)
                except EncodeError as error:
                    invalid.append(Invalid(type_url, name, str(error)))
        self._cache = self._used
        return config, invalid

    def _resource(
        self, type_url: str, name: str, value: Mapping[str, Any], invalid: list[Invalid]
    ) -> Resource:
        message = type_url.removeprefix(TYPE_PREFIX)
        head, parts, number = dict(value), {}, 0
        head.pop("@type", None)
        if type_url in _PARTS:
            field, number, part_message, key = _PARTS[type_url]
            for index, part in enumerate(head.pop(field, ())):
                part_name = str(part.get(key) or index)
                try:
                    parts[part_name] = self._encode(part_message, part)
                except EncodeError as error:
                    invalid.append(Invalid(type_url, f"{name}/{part_name}", str(error)))
        found = Resource(
            type_url, name, self._encode(message, head), parts, number, _endpoints(type_url, value)
        )
        if found.size > MAX_RESOURCE_BYTES:
            raise EncodeError(f"{message} has {found.size} bytes; limit {MAX_RESOURCE_BYTES}")
        return found

    def _encode(self, message: str, value: Mapping[str, Any]) -> bytes:
        try:
            content = _json.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"{message}: {error}") from error
        key = hashlib.blake2b(content, digest_size=16, person=message.encode()[-16:]).digest()
        found = self._used.get(key) or self._cache.get(key)
        if found is None:
            found = self._api.encode(message, value)
        self._used[key] = found
        return found


def _endpoints(type_url: str, value: Mapping[str, Any]) -> str:
    if type_url != CLUSTER or value.get("type") != "EDS":
        return ""
    eds = value.get("eds_cluster_config") or value.get("edsClusterConfig") or {}
    return str(eds.get("service_name") or eds.get("serviceName") or value.get("name", ""))
