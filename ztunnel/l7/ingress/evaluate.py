# SPDX-License-Identifier: Apache-2.0
"""Predicts which listener and which rule of an ingress gateway a request gets. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ztunnel.l7.api.gateway import ListenerProtocol
from ztunnel.l7.api.request_rules import RequestRoute
from ztunnel.l7.ingress.attachment import GatewayListeners, attached_routes, gateway_listeners
from ztunnel.l7.ingress.chains import HTTP_PROTOCOLS
from ztunnel.l7.ingress.hostnames import most_specific
from ztunnel.l7.ingress.listeners import EffectiveListener
from ztunnel.l7.ingress.virtual_hosts import Host, in_precedence, listener_hosts
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.routing.evaluate import (
    BAD_REQUEST,
    NOT_FOUND,
    Receiver,
    RouteDecision,
    RouteRequest,
    decide,
)
from ztunnel.l7.routing.precedence import Entry
from ztunnel.l7.security.paths import normalize_path


class GatewayDecision(NamedTuple):
    """The listener (empty if none gets the request) and hostname, and what happens."""

    listener: str
    hostname: str
    decision: RouteDecision


def gateway_hosts(inputs: Inputs, gateway: L7Object) -> Iterator[tuple[Host, list[Entry]]]:
    """Yield the hosts of all usable HTTP listeners with their rules, in the order of evaluation."""
    index = RouteIndex()
    index.refresh(inputs.store)
    known = gateway_listeners(inputs.store, gateway)
    routes = attached_routes(inputs.store, known, index)
    for listener in _http_listeners(known):
        siblings = frozenset(
            each.listener.hostname
            for each in _http_listeners(known)
            if each.listener.port == listener.listener.port
        )
        for host in listener_hosts(listener, routes[listener.key], siblings):
            requests = [each for each in host.routes if isinstance(each, RequestRoute)]
            yield host, in_precedence(requests)


def evaluate(
    inputs: Inputs, gateway: L7Object, receiver: Receiver, request: RouteRequest
) -> GatewayDecision:
    """Return what a gateway does with a request to a port, whose SNI is the host.

    `receiver`: the port, and the scheme of the request.
    """
    is_tls = receiver.scheme == "https"
    protocol = ListenerProtocol.HTTPS if is_tls else ListenerProtocol.HTTP
    found = {
        host.hostname: (host, entries)
        for host, entries in gateway_hosts(inputs, gateway)
        if (host.listener.listener.port, host.listener.listener.protocol)
        == (receiver.port, protocol)
    }
    name = request.headers.get("host", "").partition(":")[0].lower()
    hostname = most_specific(found, name)
    if hostname is None:
        text = f"no {protocol} listener of port {receiver.port} has the host {name}"
        decision = RouteDecision(reason=text, status=None if is_tls else NOT_FOUND)
        return GatewayDecision("", "", decision)
    host, entries = found[hostname]
    path = normalize_path(request.path)
    if path is None:
        decision = RouteDecision(reason="the path is invalid", status=BAD_REQUEST)
    else:
        decision = decide(inputs, entries, request._replace(path=path), receiver)
    return GatewayDecision(host.listener.listener.name, hostname, decision)


def _http_listeners(known: GatewayListeners) -> list[EffectiveListener]:
    return [
        each
        for each in known.listeners
        if each.is_usable and each.listener.protocol in HTTP_PROTOCOLS
    ]
