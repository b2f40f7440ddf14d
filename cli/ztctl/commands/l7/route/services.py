# SPDX-License-Identifier: Apache-2.0
"""Services by name, and the rules of their routes."""

from __future__ import annotations

from ztctl.errors import CommandError
from ztctl.output import Row
from ztunnel.l7.api.request_rules import Redirect, RequestRoute
from ztunnel.l7.api.stream_route import StreamRoute
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.routing.attachment import RouteIndex, port_routes
from ztunnel.l7.routing.evaluate import describe
from ztunnel.l7.routing.precedence import Entry, in_order
from ztunnel.mesh.model import Service, ServicePort


def find_service(inputs: Inputs, name: str) -> Service:
    """Return a service by name, `namespace/name` or DNS name. Raises CommandError."""
    exact = inputs.mesh.service_by_name(name)
    if exact is not None:
        return exact
    found = [s for s in inputs.mesh.services() if name in (s.name, f"{s.name}.{s.namespace}")]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(s.key for s in found))
        raise CommandError(f"{name!r} is ambiguous: {names}; hint: use NAMESPACE/NAME")
    raise CommandError(f"service {name!r} not found; hint: see `ztctl service list`")


def find_port(service: Service, number: int | None) -> ServicePort:
    """Return a TCP port; the default is 80, or the only one. Raises CommandError."""
    ports = [p for p in service.ports if p.protocol == "TCP"]
    wanted = number if number is not None else 80
    found = [p for p in ports if p.port == wanted]
    if not found and number is None and len(ports) == 1:
        found = ports
    if not found:
        known = ", ".join(str(p.port) for p in ports) or "none"
        raise CommandError(f"{service.key} has no TCP port {wanted}; its ports: {known}")
    return found[0]


def rule_rows(inputs: Inputs, service: Service) -> list[Row]:
    """Return a row per match of the routes of a service, in the order of evaluation."""
    index = RouteIndex()
    index.refresh(inputs.store)
    rows: list[Row] = []
    for port in service.ports:
        groups = port_routes(index.of_service(service), service, port).groups
        for group, routes in sorted(groups.items(), reverse=True):
            base = {
                "port": port.port,
                "clients": group or "all others" if len(groups) > 1 else "all",
            }
            requests = [r for r in routes if isinstance(r, RequestRoute)]
            rows += [{**base, **entry_row(entry)} for entry in in_order(requests)]
            rows += [{**base, **_stream(r)} for r in routes if isinstance(r, StreamRoute)]
    return rows


def entry_row(entry: Entry) -> Row:
    """Return the route, the conditions and the backends of a match."""
    rule, obj = entry.rule, entry.route.obj
    redirects = any(isinstance(f, Redirect) for f in rule.filters)
    backends = [f"{b.ref.name}:{b.ref.port}={b.ref.weight}" for b in rule.backends]
    action = rule.error or ("redirect" if redirects else ",".join(backends) or "500")
    return {
        "route": f"{obj.kind} {obj.namespace}/{obj.name}",
        "rule": rule.name or entry.number,
        "match": describe(entry.match),
        "action": action,
    }


def _stream(route: StreamRoute) -> Row:
    obj = route.obj
    backends = ",".join(f"{b.name}:{b.port}={b.weight}" for b in route.backends)
    return {
        "route": f"{obj.kind} {obj.namespace}/{obj.name}",
        "rule": 0,
        "match": f"SNI {', '.join(route.hostnames)}" if route.hostnames else "any connection",
        "action": backends or "reset",
    }
