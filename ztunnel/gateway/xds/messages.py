# SPDX-License-Identifier: Apache-2.0
"""The messages of delta ADS: from and to bytes, with bounds. Pure."""

from __future__ import annotations

from typing import Any, Final

from ztunnel.gateway.xds import wire
from ztunnel.gateway.xds.delta import Request, Response
from ztunnel.gateway.xds.descriptors import EncodeError, EnvoyApi
from ztunnel.gateway.xds.rejection_text import shorten
from ztunnel.gateway.xds.subscription import ProtocolError

METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
MAX_NAMES_PER_REQUEST = 50_000
_REQUEST = "envoy.service.discovery.v3.DeltaDiscoveryRequest"


def parse_request(api: EnvoyApi, octets: bytes) -> tuple[Request, str]:
    """The request, and the node's id if it has one. Raises ProtocolError."""
    try:
        message: Any = api.decode(_REQUEST, octets)
    except EncodeError as error:
        raise ProtocolError(str(error)) from error
    names = len(message.resource_names_subscribe) + len(message.initial_resource_versions)
    if names + len(message.resource_names_unsubscribe) > MAX_NAMES_PER_REQUEST:
        raise ProtocolError(f"a request with more than {MAX_NAMES_PER_REQUEST} names")
    rejection = message.error_detail.message if message.HasField("error_detail") else None
    request = Request(
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=shorten(rejection) if rejection is not None else None,
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        versions=dict(message.initial_resource_versions),
    )
    return request, str(message.node.id)


def serialize_response(response: Response) -> bytes:
    """As DeltaDiscoveryResponse: resources 2, type_url 4, nonce 5, removed_resources 6."""
    return b"".join(
        (
            wire.repeated(2, (each.envelope() for each in response.resources)),
            wire.text(4, response.type_url),
            wire.text(5, response.nonce),
            wire.repeated(6, (name.encode() for name in response.removed)),
        )
    )
