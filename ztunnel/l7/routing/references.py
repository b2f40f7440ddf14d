# SPDX-License-Identifier: Apache-2.0
"""Resolves the backends of routes.

Requests to a backend carry the waypoint's identity. A backend in another namespace therefore
needs a ReferenceGrant, unless the route is in the waypoint's own namespace or the backend is the
service that the route attaches to.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.route_fields import BackendRef
from ztunnel.l7.config import ClusterRef
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.routing.protocols import service_port
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Service

_GATEWAY_GROUP = "gateway.networking.k8s.io"
_ISTIO_GROUP = "networking.istio.io"


class ResolvedReason(StrEnum):
    """Reasons of the condition ResolvedRefs of a route's parent."""

    RESOLVED = "ResolvedRefs"
    NOT_PERMITTED = "RefNotPermitted"
    INVALID_KIND = "InvalidKind"
    NOT_FOUND = "BackendNotFound"
    UNSUPPORTED_PROTOCOL = "UnsupportedProtocol"


class Resolution(NamedTuple):
    """A backend's cluster, or why there is none."""

    cluster: ClusterRef | None
    reason: ResolvedReason = ResolvedReason.RESOLVED
    message: str = ""


def resolve(inputs: Inputs, route: L7Object, parent: Service | None, ref: BackendRef) -> Resolution:
    """Resolve a backend of a route that attaches to the service `parent`, or to a Gateway (None).

    Routes of a Gateway have no exception: a backend in another namespace needs a ReferenceGrant.
    """
    if (ref.group, ref.kind) == ("", "Service") and not _may_refer(inputs, route, parent, ref):
        return Resolution(  # whether or not the service exists, which is not the route's to know
            None,
            ResolvedReason.NOT_PERMITTED,
            f"{ref.where} is in namespace {ref.namespace!r}, where no ReferenceGrant permits "
            f"{route.kind} of namespace {route.namespace!r}",
        )
    service = _service(inputs, ref)
    if isinstance(service, Resolution):
        return service
    is_own = parent is not None and service.key == parent.key
    if (service.dynamic_ports or service.networks) and not is_own:
        return Resolution(
            None,
            ResolvedReason.INVALID_KIND,
            f"{ref.where} is {service.key}, where each connection has its own destination "
            "(resolution DYNAMIC_DNS or NONE): only its own routes can use it",
        )
    if ref.port is None:
        return Resolution(None, ResolvedReason.NOT_FOUND, f"{ref.where} has no port")
    transport = "UDP" if route.kind == "UDPRoute" else "TCP"
    if service_port(service, ref.port, transport) is None:
        text = f"{service.key} has no {transport} port {ref.port}"
        return Resolution(None, ResolvedReason.NOT_FOUND, text)
    is_grpc = parent is None and route.kind == "GRPCRoute"
    return Resolution(ClusterRef(service.key, ref.port, http2=is_grpc))


def _service(inputs: Inputs, ref: BackendRef) -> Service | Resolution:
    if (ref.group, ref.kind) == ("", "Service"):
        found = inputs.mesh.service(f"{ref.namespace}/{ref.name}")
        what = f"Service {ref.namespace}/{ref.name}"
    elif (ref.group, ref.kind) == (_ISTIO_GROUP, "Hostname"):
        found = inputs.mesh.service_by_hostname(ref.name, ref.namespace)
        what = f"a service with the hostname {ref.name}"
    else:
        kind = f"{ref.group}/{ref.kind}".lstrip("/")
        return Resolution(
            None, ResolvedReason.INVALID_KIND, f"{ref.where}: kind {kind} is not supported"
        )
    if found is None:
        return Resolution(None, ResolvedReason.NOT_FOUND, f"{what} does not exist")
    return found


def _may_refer(inputs: Inputs, route: L7Object, parent: Service | None, ref: BackendRef) -> bool:
    if parent is not None:
        gateway_namespace = parent.waypoint.partition("/")[0]
        is_own = (ref.namespace, ref.name) == (parent.namespace, parent.name)
        if is_own or route.namespace == gateway_namespace:
            return True
    return is_granted(inputs.store, route, Reference("", "Service", ref.namespace, ref.name))


class Reference(NamedTuple):
    """What an object refers to."""

    group: str
    kind: str
    namespace: str
    name: str


def is_granted(store: L7Store, origin: L7Object, target: Reference) -> bool:
    """Return whether an object of Gateway API may refer to a target: one in its own namespace, or
    one that a ReferenceGrant permits."""
    if origin.namespace == target.namespace:
        return True
    grants = store.of_namespace("ReferenceGrant", target.namespace)
    return any(_grants(grant, origin, target) for grant in grants)


def _grants(grant: L7Object, origin: L7Object, target: Reference) -> bool:
    """Return whether a ReferenceGrant permits a reference; an invalid grant permits nothing."""
    spec = Fields(grant.spec, "spec.")
    try:
        is_origin = any(
            (f.string("group"), f.string("kind"), f.string("namespace"))
            == (_GATEWAY_GROUP, origin.kind, origin.namespace)
            for f in spec.mappings("from")
        )
        is_target = any(
            (t.string("group"), t.string("kind")) == (target.group, target.kind)
            and t.string("name") in ("", target.name)
            for t in spec.mappings("to")
        )
    except TranslateError:
        return False
    return is_origin and is_target
