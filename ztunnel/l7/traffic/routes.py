# SPDX-License-Identifier: Apache-2.0
"""Routes of VirtualServices."""

from __future__ import annotations

from dataclasses import replace

from ztunnel.l7.api.istio.values import Reporter
from ztunnel.l7.config import ClusterRef, RouteTable, StreamTable
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.traffic.virtual_service.destinations import Resolver
from ztunnel.l7.traffic.virtual_service.routes import RouteTableBuilder
from ztunnel.l7.traffic.virtual_service.selection import select
from ztunnel.l7.traffic.virtual_service.streams import StreamTableBuilder


def route_source(inputs: Inputs, destination: Destination) -> RouteTable | None:
    """Return the routes of a service port to which no producer route of Gateway API attaches.

    None: all requests go to the service itself.
    """
    service, port = destination.service, destination.port
    if service is None or port is None:
        return None
    selected = select(inputs, destination.gateway, service)
    if selected is None:
        return None
    resolver = Resolver(inputs, selected.obj, destination.gateway, service, port.port)
    table = RouteTableBuilder(selected.obj, resolver).build()
    conflicts = tuple(_conflict(obj, selected.obj) for obj in selected.shadowed)
    return table and replace(table, problems=(*table.problems, *conflicts))


def stream_source(inputs: Inputs, destination: Destination) -> StreamTable | None:
    """Return where connections to a port go to which no route of Gateway API attaches.

    None: all connections go to the service itself.
    """
    service, port = destination.service, destination.port
    if service is None or port is None:
        return None
    selected = select(inputs, destination.gateway, service)
    if selected is None:
        return None
    resolver = Resolver(inputs, selected.obj, destination.gateway, service, port.port)
    builder = StreamTableBuilder(selected.obj, resolver)
    table = builder.build() if destination.protocol is Protocol.TCP else None
    if table is None and builder.problems:
        own = ClusterRef(service.key, port.port)
        return StreamTable({"cluster": own.name}, frozenset((own,)), builder.problems)
    return table


def replaced_problems(inputs: Inputs, destination: Destination, kind: str) -> tuple[Problem, ...]:
    """Report the VirtualService that a route of Gateway API replaces; `kind` is the route's."""
    service = destination.service
    selected = None if service is None else select(inputs, destination.gateway, service)
    if selected is None or service is None:
        return ()
    reporter = Reporter(selected.obj)
    message = f"{service.key} has an {kind}, which replaces the VirtualService"
    reporter.report(Severity.IGNORED, "spec.hosts", message, "Conflicted")
    return tuple(reporter.problems)


def _conflict(obj: L7Object, older: L7Object) -> Problem:
    reporter = Reporter(obj)
    message = f"{older.namespace}/{older.name} is older and has the same host"
    reporter.report(Severity.IGNORED, "spec.hosts", message, "Conflicted")
    return reporter.problems[0]
