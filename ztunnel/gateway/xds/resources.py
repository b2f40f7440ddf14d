# SPDX-License-Identifier: Apache-2.0
"""Encodes resources for delta ADS, and caches the encoded parts by content.

A listener has one filter chain per destination, a route configuration one virtual host per name.
These parts are encoded on their own: a change of one of 500 chains encodes one chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from ztunnel.gateway.xds import wire
from ztunnel.gateway.xds.descriptors import TYPE_PREFIX, EncodeError, EnvoyApi

CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
SECRET = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

VERSION_BYTES = 12  # of the content's hash
PART_HASH_BYTES = 6
MAX_RESOURCE_BYTES = 32 << 20
_SEPARATOR = ":"

# By type: field with the parts, its number, their message, the field that names a part.
_PARTS = {
    LISTENER: ("filter_chains", 3, "envoy.config.listener.v3.FilterChain", "name"),
    ROUTES: ("virtual_hosts", 2, "envoy.config.route.v3.VirtualHost", "name"),
}
# By field of Secret: its number, and the number of its field `watched_directory`.
_WATCHED = {"tls_certificate": (2, 7), "validation_context": (4, 11)}

_json = msgspec.json.Encoder()


@dataclass(frozen=True)
class Resource:
    """A resource that Envoy may get: serialized, with a version that is a hash of its content.

    `head` is everything but the parts. `parts` are serialized by name, in order; their field has
    the number `part_field`. `endpoints`: of a cluster, the name of its ClusterLoadAssignment.
    `watched`: of a secret, the field with a watched directory, the number of `watched_directory`
    in it, and the path. `pinned_version` replaces the hash.
    """

    type_url: str
    name: str
    head: bytes
    parts: Mapping[str, bytes]
    part_field: int = 0
    endpoints: str = ""
    watched: tuple[int, int, str] | None = None
    pinned_version: str = ""

    @cached_property
    def version(self) -> str:
        """A hash of the content; of a listener, also hashes of its parts, see `with_parts_of`."""
        if self.pinned_version:
            return self.pinned_version
        parts = "".join(self.part_hashes.values())
        content = hashlib.blake2b(self.head + parts.encode(), digest_size=VERSION_BYTES)
        return content.hexdigest() + (f"{_SEPARATOR}{parts}" if self.type_url == LISTENER else "")

    @cached_property
    def part_hashes(self) -> dict[str, str]:
        """A hash of each part with its name."""
        return {
            name: hashlib.blake2b(
                wire.text(1, name) + wire.field(2, part), digest_size=PART_HASH_BYTES
            ).hexdigest()
            for name, part in self.parts.items()
        }

    def with_parts_of(self, version: str) -> Resource | None:
        """The resource with those of its parts that are also in another version of it.

        After a restart of this process, a version is all that is known of what Envoy has. None if
        the version has no hashes of parts.
        """
        _, separator, text = version.partition(_SEPARATOR)
        if not separator:
            return None
        size = 2 * PART_HASH_BYTES
        hashes = {text[at : at + size] for at in range(0, len(text), size)}
        parts = {
            name: self.parts[name] for name, each in self.part_hashes.items() if each in hashes
        }
        return replace(self, parts=parts)

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
    """One per gateway: its cache has what the last configuration needed.

    The compiler returns the identical object for a part that has not changed; objects that are
    equal, but not identical, are found by a hash of their JSON text.
    """

    def __init__(self, api: EnvoyApi) -> None:
        self._api = api
        self._by_identity: dict[int, tuple[Any, bytes]] = {}  # the object keeps its id in use
        self._by_content: dict[bytes, bytes] = {}
        self._last: dict[str, dict[str, Resource]] = {}
        self._valid: dict[str, dict[str, Any]] = {}  # what these were encoded from, if valid

    def encode(
        self, resources: Mapping[Any, Mapping[str, Mapping[str, Any]]]
    ) -> tuple[dict[str, dict[str, Resource]], list[Invalid]]:
        """Encode proto3 JSON by type URL and name.

        The last valid version takes the place of an invalid resource or part; without one, it is
        left out.
        """
        round_ = _Round(self._by_identity, self._by_content)
        config: dict[str, dict[str, Resource]] = {}
        invalid: list[Invalid] = []
        valid: dict[str, dict[str, Any]] = {}
        for url, named in resources.items():
            type_url = str(url)
            group, last = config.setdefault(type_url, {}), self._last.get(type_url, {})
            old, values = self._valid.get(type_url, {}), valid.setdefault(type_url, {})
            for name, value in named.items():
                known = len(invalid)
                if old.get(name) is value:
                    group[name], values[name] = last[name], value
                    round_.keep(value, *value.get(_PARTS.get(type_url, ("",))[0], ()))
                    continue
                try:
                    group[name] = self._resource(type_url, name, value, round_, invalid)
                except EncodeError as error:
                    invalid.append(Invalid(type_url, name, str(error)))
                    if name in last:
                        group[name] = last[name]
                if len(invalid) == known:
                    values[name] = value
        self._by_identity, self._by_content = round_.by_identity, round_.by_content
        self._last = config
        self._valid = valid
        return config, invalid

    def _resource(
        self,
        type_url: str,
        name: str,
        value: Mapping[str, Any],
        round_: _Round,
        invalid: list[Invalid],
    ) -> Resource:
        message = type_url.removeprefix(TYPE_PREFIX)
        head, parts, number = value, {}, 0
        if type_url in _PARTS:
            field, number, part_message, key = _PARTS[type_url]
            last = self._last.get(type_url, {}).get(name)
            head = {key: each for key, each in value.items() if key != field}
            for index, part in enumerate(value.get(field, ())):
                part_name = str(part.get(key) or index)
                try:
                    parts[part_name] = self._encode(part_message, part, round_)
                except EncodeError as error:
                    invalid.append(Invalid(type_url, f"{name}/{part_name}", str(error)))
                    if last is not None and part_name in last.parts:
                        parts[part_name] = last.parts[part_name]
        octets = self._encode(message, head, round_)
        found = Resource(
            type_url,
            name,
            octets,
            parts,
            number,
            _endpoints(type_url, value),
            _watched(type_url, value),
        )
        if found.size > MAX_RESOURCE_BYTES:
            raise EncodeError(f"{message} has {found.size} bytes; limit {MAX_RESOURCE_BYTES}")
        return self._same_as_last(found)

    def _same_as_last(self, found: Resource) -> Resource:
        """The resource of the last round if it is equal: its version is known already."""
        last = self._last.get(found.type_url, {}).get(found.name)
        return last if last is not None and last == found else found

    def _encode(self, message: str, value: Mapping[str, Any], round_: _Round) -> bytes:
        known = round_.by_identity.get(id(value)) or round_.old_identity.get(id(value))
        if known is not None and known[0] is value:
            round_.by_identity[id(value)] = known
            return known[1]
        try:
            content = _json.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"{message}: {error}") from error
        key = hashlib.blake2b(content, digest_size=16, person=message.encode()[-16:]).digest()
        found = round_.by_content.get(key) or round_.old_content.get(key)
        if found is None:
            found = self._api.encode(message, value)
        round_.by_identity[id(value)] = value, found
        round_.by_content[key] = found
        return found


class _Round:
    """The caches of one call of `encode`; those of the last call are only read."""

    def __init__(
        self, old_identity: dict[int, tuple[Any, bytes]], old_content: dict[bytes, bytes]
    ) -> None:
        self.old_identity, self.old_content = old_identity, old_content
        self.by_identity: dict[int, tuple[Any, bytes]] = {}
        self.by_content: dict[bytes, bytes] = {}

    def keep(self, *values: Any) -> None:
        """Keep what is known of objects that are not encoded again."""
        for value in values:
            known = self.old_identity.get(id(value))
            if known is not None:
                self.by_identity[id(value)] = known


def _endpoints(type_url: str, value: Mapping[str, Any]) -> str:
    if type_url != CLUSTER or value.get("type") != "EDS":
        return ""
    eds = value.get("eds_cluster_config") or value.get("edsClusterConfig") or {}
    return str(eds.get("service_name") or eds.get("serviceName") or value.get("name", ""))


def _watched(type_url: str, value: Mapping[str, Any]) -> tuple[int, int, str] | None:
    for field, (number, directory) in _WATCHED.items() if type_url == SECRET else ():
        if field in value and "watched_directory" in value[field]:
            return number, directory, str(value[field]["watched_directory"]["path"])
    return None
