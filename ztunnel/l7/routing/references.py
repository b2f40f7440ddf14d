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


def resolve(inputs: Inputs, route: L7Object, parent: Service, ref: BackendRef) -> Resolution:
    """Resolve a backend of a route that attaches to the service `parent`."""
    service = _service(inputs, ref)
    if isinstance(service, Resolution):
        return service
    if not _is_permitted(inputs, route, parent, service):
        return Resolution(
            None,
            ResolvedReason.NOT_PERMITTED,
            f"{ref.where} is in namespace {service.namespace!r}, where no ReferenceGrant permits "
            f"{route.kind} of namespace {route.namespace!r}",
        )
    if ref.port is None:
        return Resolution(None, ResolvedReason.NOT_FOUND, f"{ref.where} has no port")
    if service_port(service, ref.port) is None:
        return Resolution(
            None, ResolvedReason.NOT_FOUND, f"{service.key} has no TCP port {ref.port}"
        )
    return Resolution(ClusterRef(service.key, ref.port))


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
            None, ResolvedReason.INVALID_KIND, f"{ref.where}: waypoints do not support kind {kind}"
        )
    if found is None:
        return Resolution(None, ResolvedReason.NOT_FOUND, f"{what} does not exist")
    return found


def _is_permitted(inputs: Inputs, route: L7Object, parent: Service, backend: Service) -> bool:
    own = backend.key == parent.key or backend.namespace == route.namespace
    gateway_namespace = parent.waypoint.partition("/")[0]
    if own or backend.is_service_entry or route.namespace == gateway_namespace:
        return True
    grants = inputs.store.of_namespace("ReferenceGrant", backend.namespace)
    return any(_grants(grant, route, backend.name) for grant in grants)


def _grants(grant: L7Object, route: L7Object, name: str) -> bool:
    """Return whether a ReferenceGrant permits a route; an invalid grant permits nothing."""
    spec = Fields(grant.spec, "spec.")
    try:
        origin = any(
            (f.string("group"), f.string("kind"), f.string("namespace"))
            == (_GATEWAY_GROUP, route.kind, route.namespace)
            for f in spec.mappings("from")
        )
        target = any(
            (t.string("group"), t.string("kind")) == ("", "Service")
            and t.string("name") in ("", name)
            for t in spec.mappings("to")
        )
    except TranslateError:
        return False
    return origin and target
