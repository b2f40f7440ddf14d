# SPDX-License-Identifier: Apache-2.0
"""The ADS server survives every request: any process of a gateway pod can connect to it.

The input is a sequence of serialized DeltaDiscoveryRequests. Only ProtocolError ends a stream, the
responses to a request end, and at most one response of a type waits for an answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from tests.fuzz.target import Target, rearranged
from ztunnel.gateway.xds import descriptors, messages
from ztunnel.gateway.xds.delta import DeltaSession
from ztunnel.gateway.xds.descriptors import EnvoyApi
from ztunnel.gateway.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Resource
from ztunnel.gateway.xds.subscription import ProtocolError

_REQUEST = "envoy.service.discovery.v3.DeltaDiscoveryRequest"
TYPES = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)


@cache
def _api() -> EnvoyApi:
    return descriptors.load()


def _config() -> dict[str, dict[str, Resource]]:
    chains = {"a": b"1", "b": b"2"}
    return {
        CLUSTER: {"c": Resource(CLUSTER, "c", b"c", {}, 0, "c")},
        ENDPOINTS: {"c": Resource(ENDPOINTS, "c", b"e", {})},
        LISTENER: {"l": Resource(LISTENER, "l", b"l", chains, 3)},
        ROUTES: {"r": Resource(ROUTES, "r", b"r", {})},
    }


def check(octets: bytes) -> None:
    session = DeltaSession()
    now, in_flight = 0.0, dict[str, str]()
    for number, text in enumerate(requests(octets)):
        if number == 2:
            session.set_config(_config())
        try:
            request, _ = messages.parse_request(_api(), text)
            session.receive(request)
        except ProtocolError:
            return
        if request.nonce and in_flight.get(request.type_url) == request.nonce:
            del in_flight[request.type_url]
        now += 0.7
        for count, response in enumerate(session.responses(now)):
            assert count < 64, "the responses do not end"
            messages.serialize_response(response)
            assert response.type_url not in in_flight
            in_flight[response.type_url] = response.nonce
        list(session.statuses())
        list(session.rejected())


def requests(octets: bytes) -> Iterator[bytes]:
    """Each request follows two bytes with its length."""
    at = 0
    while at + 2 <= len(octets):
        end = at + 2 + int.from_bytes(octets[at : at + 2])
        yield octets[at + 2 : end]
        at = end


def _framed(text: bytes) -> bytes:
    return len(text).to_bytes(2) + text


def _request(chance: random.Random) -> bytes:
    names = ["c", "l", "r", "*", "none"]
    value: dict[str, object] = {"type_url": chance.choice((*TYPES, "other"))}
    if chance.randrange(2):
        value["response_nonce"] = f"{chance.randrange(12):x}"
        if chance.randrange(2):
            value["error_detail"] = {"code": 3, "message": "no"}
    if chance.randrange(2):
        value["resource_names_subscribe"] = chance.sample(names, chance.randrange(1, 4))
    if not chance.randrange(3):
        value["resource_names_unsubscribe"] = chance.sample(names, chance.randrange(1, 3))
    if not chance.randrange(3):
        value["initial_resource_versions"] = {chance.choice(names): f"{chance.randrange(3)}:aa"}
    return _framed(_api().encode(_REQUEST, value))


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    parts = [_framed(text) for text in requests(octets)]
    return b"".join(rearranged(parts, [_request(chance) for _ in range(3)], chance))


def _seed(*values: dict[str, object]) -> bytes:
    return b"".join(_framed(_api().encode(_REQUEST, value)) for value in values)


TARGET = Target(
    check,
    seeds=(
        _seed(
            {"type_url": CLUSTER, "node": {"id": "n"}},
            {"type_url": LISTENER},
            {"type_url": ENDPOINTS, "resource_names_subscribe": ["c"]},
            {"type_url": CLUSTER, "response_nonce": "1"},
            {"type_url": ENDPOINTS, "response_nonce": "2"},
            {"type_url": LISTENER, "response_nonce": "3", "error_detail": {"message": "no"}},
            {"type_url": LISTENER, "response_nonce": "4"},
        ),
    ),
    mutate=_mutate,
    words=tuple(each.encode() for each in TYPES),
    max_len=4096,
)
