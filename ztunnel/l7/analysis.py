# SPDX-License-Identifier: Apache-2.0
"""Everything that gateways do not honour, or honour only partly. Pure.

    routes, rules, policies   what their parsers and the compilation of each gateway report
    attachment                targets that do not exist, or that no gateway serves
    kinds                     those that gateways never read

A policy that nodes enforce instead is reported with what nodes report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ztunnel.l7.api.authorization_policy import KIND as AUTHORIZATION_POLICY
from ztunnel.l7.api.authorization_policy import REMOTE_ADDRESS, parse_authorization_policy
from ztunnel.l7.api.gateway import parse_gateway, parse_listener_set
from ztunnel.l7.api.request_authentication import KIND as REQUEST_AUTHENTICATION
from ztunnel.l7.api.request_authentication import NO_TARGETS, parse_request_authentication
from ztunnel.l7.api.target_refs import Target, TargetKind
from ztunnel.l7.compile import compile_gateway
from ztunnel.l7.ingress.attachment import Attachment, attach, parent_gateway
from ztunnel.l7.ingress.listeners import ingress_gateways, is_ingress_gateway, is_set_allowed
from ztunnel.l7.ingress.pods import GATEWAY_LABEL
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.names import WAYPOINT_CLASSES, is_ingress_class, is_waypoint_class
from ztunnel.l7.objects import L7Key, L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.l7.routing.attachment import (
    ROUTE_KINDS,
    UDP_KIND,
    AcceptedReason,
    Route,
    RouteIndex,
)
from ztunnel.l7.routing.route_status import route_status
from ztunnel.l7.status.gateway import listener_problem
from ztunnel.l7.status.gateway_routes import ListenerViews
from ztunnel.l7.telemetry.effective import telemetry_problems
from ztunnel.l7.traffic.cluster import rule_problems
from ztunnel.l7.traffic.unused import unused_problems
from ztunnel.mesh.model import Service

_NEVER_READ = {
    "EnvoyFilter": "gateways do not read it: Envoy's configuration is the mesh's own",
    "WasmPlugin": "gateways do not read it: Envoy runs no extensions",
}
_ALL_ROUTES = (*ROUTE_KINDS, UDP_KIND)


NodeProblems = Callable[[L7Object, str], Iterable[Problem]]


def analyze(inputs: Inputs, node_problems: NodeProblems) -> tuple[Problem, ...]:
    """Return all problems, ordered by object, without duplicates.

    `node_problems` returns what nodes report about an AuthorizationPolicy that they enforce; its
    arguments are the object and the root namespace.
    """
    found = set(_authorization_policies(inputs, node_problems))
    for source in _SOURCES:
        found.update(source(inputs))
    return tuple(sorted(found))


def _compiled(inputs: Inputs) -> Iterator[Problem]:
    """What the compilation of every gateway reports."""
    named = {each.waypoint for each in inputs.mesh.services()}
    named |= set(ingress_gateways(inputs.store))
    named |= {each.waypoint for each in inputs.mesh.workloads()}
    for gateway in sorted(named - {""}):
        try:
            yield from compile_gateway(inputs, gateway).problems
        except Exception as error:  # a defect must not hide the other problems
            namespace, _, name = gateway.partition("/")
            message = f"cannot be compiled: {type(error).__name__}: {error}"
            key = L7Key("Gateway", namespace, name)
            yield _problem(key, message, Severity.ERROR, "CompileFailed")


def _unused(inputs: Inputs) -> Iterable[Problem]:
    return unused_problems(inputs, ingress_gateways(inputs.store))


def _waypoints(inputs: Inputs) -> Iterator[Problem]:
    """Services and pods whose waypoint cannot be used."""
    for service in inputs.mesh.services():
        if service.waypoint_error:
            kind = "ServiceEntry" if service.is_service_entry else "Service"
            key = L7Key(kind, service.namespace, service.entry or service.name)
            yield _unusable(key, service.waypoint_error)
        if service.is_service_entry and not service.waypoint_error:
            yield from _entry_problems(service)
    for pod in inputs.mesh.workloads():
        if pod.waypoint_error:
            yield _unusable(L7Key("Pod", pod.namespace, pod.name), pod.waypoint_error)


def _entry_problems(service: Service) -> Iterator[Problem]:
    """Hosts of ServiceEntries that cannot be reached as they are."""
    key = L7Key("ServiceEntry", service.namespace, service.entry)
    if service.dynamic_ports and not service.waypoint:
        message = (
            f"connections to {service.hostname} are refused: a waypoint resolves its names "
            "(DYNAMIC_DNS), and it has none; hint: set the label istio.io/use-waypoint"
        )
        yield _problem(key, message, Severity.ERROR, "NoWaypoint", "spec.resolution")
    if service.waypoint and not service.vips and not service.networks:
        message = (
            f"connections to {service.hostname} are refused: it has a waypoint but no virtual "
            "address; hint: set spec.addresses, or remove the label that opts out of allocation"
        )
        yield _problem(key, message, Severity.ERROR, "NoVirtualAddress", "spec.addresses")


def _unusable(key: L7Key, error: str) -> Problem:
    message = f"connections are refused: {error}"
    return _problem(key, message, Severity.ERROR, "WaypointUnusable")


def _gateways(inputs: Inputs) -> Iterator[Problem]:
    for obj in inputs.store.of_kind("Gateway"):
        name = obj.spec.get("gatewayClassName")
        if is_ingress_gateway(inputs.store, obj):
            continue  # its listeners are compiled
        if name not in WAYPOINT_CLASSES:
            message = f"class {name!r:.80} is not the mesh's: another controller runs it"
            yield _of(obj, message, Severity.IGNORED, "spec.gatewayClassName", "ForeignClass")
            continue
        listeners = obj.spec.get("listeners")
        for number, listener in enumerate(listeners if isinstance(listeners, list) else ()):
            text = listener_problem(listener) if isinstance(listener, dict) else "is no mapping"
            if text:
                path = f"spec.listeners[{number}]"
                yield _of(obj, text, Severity.ERROR, path, "UnsupportedProtocol")


def _listener_sets(inputs: Inputs) -> Iterator[Problem]:
    """ListenerSets that have no effect."""
    for obj in inputs.store.of_kind("ListenerSet"):
        parsed = parse_listener_set(obj)
        namespace, _, name = parsed.gateway.partition("/")
        gateway = inputs.store.get("Gateway", namespace, name)
        if not parsed.gateway or gateway is None:
            text = f"Gateway {parsed.gateway} does not exist"
            yield _of(obj, text, Severity.WARNING, "spec.parentRef", "NoParent")
        elif not is_ingress_gateway(inputs.store, gateway):
            text = f"{parsed.gateway} is not an ingress gateway of the mesh"
            yield _of(obj, text, Severity.IGNORED, "spec.parentRef", "NoParent")
        elif not is_set_allowed(inputs.store, parse_gateway(gateway), parsed):
            text = (
                f"{parsed.gateway} does not admit ListenerSets of namespace {obj.namespace}; "
                "hint: set its spec.allowedListeners"
            )
            yield _of(obj, text, Severity.ERROR, "spec.parentRef", "NotAllowed")


def _routes(inputs: Inputs) -> Iterator[Problem]:
    index, views = RouteIndex(), ListenerViews()
    index.refresh(inputs.store)
    for kind in _ALL_ROUTES:
        for obj in inputs.store.of_kind(kind):
            route = index.parsed(obj)
            attached = [] if isinstance(route, Problem) else _attachments(inputs, route, views)
            for each in attached:
                if each.accepted is not AcceptedReason.ACCEPTED:
                    field = f"spec.parentRefs[{each.index}]"
                    yield _of(obj, each.message, Severity.ERROR, field, each.accepted)
            if kind == UDP_KIND:
                yield from _udp_route(obj, route)
                continue
            found = route_status(inputs, obj, index)
            yield from found.problems
            if not found.parents and not found.problems and not attached:
                message = (
                    "no parent is a service or a gateway of the mesh: another controller may use it"
                )
                yield _of(obj, message, Severity.IGNORED, "spec.parentRefs", "NoParent")


def _attachments(inputs: Inputs, route: Route, views: ListenerViews) -> list[Attachment]:
    found = []
    for number, parent in enumerate(route.parents):
        gateway = parent_gateway(inputs.store, parent)
        if gateway is not None:
            listeners = views.of(inputs.store, gateway)
            found.append(attach(inputs.store, route, number, listeners))
    return found


def _udp_route(obj: L7Object, route: Route | Problem) -> Iterator[Problem]:
    if isinstance(route, Problem):
        yield route
    elif any(parent.kind in ("Service", "Hostname") for parent in route.parents):
        yield _of(obj, "UDP does not pass waypoints", Severity.IGNORED, "", "UnsupportedKind")


def _authorization_policies(inputs: Inputs, node_problems: NodeProblems) -> Iterator[Problem]:
    root = inputs.settings.root_namespace
    for obj in inputs.store.of_kind(AUTHORIZATION_POLICY):
        policy = parse_authorization_policy(obj, root)
        at_ingress = _is_for_ingress(inputs, obj, policy.selector, policy.targets)
        if policy.targets or policy.everywhere:
            yield from (
                each
                for each in policy.problems
                if not (at_ingress and each.reason == REMOTE_ADDRESS)
            )
        by_node = [
            target
            for target in policy.targets
            if target.kind is TargetKind.SERVICE and _is_without_waypoint(inputs, obj, target)
        ]
        yield from _missing_targets(inputs, obj, policy.targets)
        if by_node or not (policy.targets or policy.everywhere or at_ingress):
            yield from node_problems(obj, root)


def _request_authentications(inputs: Inputs) -> Iterator[Problem]:
    for obj in inputs.store.of_kind(REQUEST_AUTHENTICATION):
        policy = parse_request_authentication(obj, inputs.settings.root_namespace)
        at_ingress = _is_for_ingress(inputs, obj, policy.selector, policy.targets)
        yield from (
            each for each in policy.problems if not (at_ingress and each.reason == NO_TARGETS)
        )
        yield from _missing_targets(inputs, obj, policy.targets)
        for target in policy.targets:
            if target.kind is TargetKind.SERVICE and _is_without_waypoint(inputs, obj, target):
                message = (
                    f"service {obj.namespace}/{target.name} uses no waypoint: it has no effect"
                )
                yield _of(obj, message, Severity.IGNORED, "spec.targetRefs", "NoWaypoint")


def _is_for_ingress(
    inputs: Inputs, obj: L7Object, selector: dict[str, str], targets: Sequence[Target]
) -> bool:
    """Whether a policy concerns ingress gateways only: it targets them, or selects their pods."""
    names = [each.name if each.kind is TargetKind.GATEWAY else "" for each in targets]
    if not names:
        names = [selector.get(GATEWAY_LABEL, "")]
    gateways = (inputs.store.get("Gateway", obj.namespace, name) for name in names)
    return all(is_ingress_gateway(inputs.store, each) for each in gateways)


def _missing_targets(inputs: Inputs, obj: L7Object, targets: Iterable[Target]) -> Iterator[Problem]:
    for target in targets:
        text = _target_error(inputs, obj.namespace, target)
        if text:
            yield _of(obj, text, Severity.WARNING, "spec.targetRefs", "TargetNotFound")


def _target_error(inputs: Inputs, namespace: str, target: Target) -> str:
    """Why a target has no effect; empty if it has one."""
    place = f"{target.kind} {namespace}/{target.name}"
    match target.kind:
        case TargetKind.GATEWAY_CLASS:
            is_ours = is_waypoint_class(target.name) or is_ingress_class(target.name)
            return "" if is_ours else f"class {target.name} has no gateways of the mesh"
        case TargetKind.GATEWAY:
            return _gateway_error(
                inputs, inputs.store.get("Gateway", namespace, target.name), place
            )
        case TargetKind.SERVICE_ENTRY:
            return _entry_error(inputs, namespace, target.name, place)
        case TargetKind.SERVICE:
            service = inputs.mesh.service(f"{namespace}/{target.name}")
            exists = service is not None and not service.is_service_entry
            return "" if exists else f"{place} does not exist"


def _gateway_error(inputs: Inputs, gateway: L7Object | None, place: str) -> str:
    if gateway is None:
        return f"{place} does not exist"
    is_waypoint = is_waypoint_class(gateway.spec.get("gatewayClassName"))
    is_ours = is_waypoint or is_ingress_gateway(inputs.store, gateway)
    return "" if is_ours else f"{place} is not a gateway of the mesh"


def _entry_error(inputs: Inputs, namespace: str, name: str, place: str) -> str:
    hosts = [
        each
        for each in inputs.mesh.services()
        if each.namespace == namespace and each.entry == name
    ]
    if not hosts:
        return f"{place} does not exist, or is invalid"
    return "" if any(each.waypoint for each in hosts) else f"{place} uses no waypoint"


def _is_without_waypoint(inputs: Inputs, obj: L7Object, target: Target) -> bool:
    service = inputs.mesh.service(f"{obj.namespace}/{target.name}")
    return service is not None and not service.waypoint


def _never_read(inputs: Inputs) -> Iterator[Problem]:
    for kind, message in _NEVER_READ.items():
        for obj in inputs.store.of_kind(kind):
            yield _of(obj, message, Severity.IGNORED, "", "UnsupportedKind")


_SOURCES: tuple[Callable[[Inputs], Iterable[Problem]], ...] = (
    _compiled,
    _waypoints,
    _gateways,
    _listener_sets,
    _routes,
    _request_authentications,
    rule_problems,
    _unused,
    telemetry_problems,
    _never_read,
)


def _of(
    obj: L7Object, message: str, severity: Severity, field: str = "", reason: str = ""
) -> Problem:
    return _problem(obj.key, message, severity, reason, field)


def _problem(key: L7Key, message: str, severity: Severity, reason: str, field: str = "") -> Problem:
    return problem_of(
        key,
        field=field,
        message=message,
        severity=severity,
        reason=reason,
    )
