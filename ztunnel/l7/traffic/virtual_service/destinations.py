# SPDX-License-Identifier: Apache-2.0
"""Resolves the destinations of a VirtualService to clusters.

Requests to a destination carry the waypoint's identity. As for HTTPRoute, a destination in another
namespace needs a ReferenceGrant, unless the VirtualService is in the waypoint's namespace.
"""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.istio.values import complete_host
from ztunnel.l7.config import ClusterRef
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.traffic.rules import find_rule
from ztunnel.l7.traffic.virtual_service.selection import KIND
from ztunnel.mesh.model import Service

_GROUP = "networking.istio.io"


@dataclass(frozen=True)
class Resolver:
    """Resolves for one VirtualService; `port` is that of the requests."""

    inputs: Inputs
    obj: L7Object
    gateway: str
    service: Service
    port: int

    def resolve(self, destination: Fields) -> ClusterRef:
        """Return the cluster. Raises TranslateError if the destination cannot be used."""
        destination.allow_only("host", "subset", "port")
        service = self._service(destination)
        if not self._is_permitted(service):
            raise destination.error(
                "host", f"a service that a ReferenceGrant of {service.namespace} permits"
            )
        if (service.dynamic_ports or service.networks) and service.key != self.service.key:
            raise destination.error("host", "a host whose resolution is not DYNAMIC_DNS or NONE")
        port = destination.mapping("port")
        port.allow_only("number")
        number = port.port("number") or self._default_port(service)
        if not any(p.port == number and p.protocol == "TCP" for p in service.ports):
            raise destination.error("port", f"a TCP port of {service.key}")
        return ClusterRef(service.key, number, destination.string("subset"))

    def has_subset(self, ref: ClusterRef) -> bool:
        """Whether the DestinationRule of a cluster's service defines its subset."""
        service = self.inputs.mesh.service(ref.service)
        rule = None if service is None else find_rule(self.inputs, self.gateway, service)
        return not ref.subset or (rule is not None and ref.subset in rule.subsets)

    def _service(self, destination: Fields) -> Service:
        host = destination.string("host")
        domain = self.inputs.settings.cluster_domain
        full = complete_host(host, self.obj.namespace, domain)
        if full == self.service.hostname:
            return self.service
        found = self.inputs.mesh.service_by_hostname(full, self.obj.namespace)
        if found is None:
            raise destination.error("host", "an existing service")
        return found

    def _default_port(self, service: Service) -> int:
        ports = [p.port for p in service.ports if p.protocol == "TCP"]
        return ports[0] if len(ports) == 1 else self.port

    def _is_permitted(self, backend: Service) -> bool:
        own = self.obj.namespace
        if backend.key == self.service.key or backend.is_service_entry:
            return True
        if own in (backend.namespace, self.gateway.partition("/")[0]):
            return True
        grants = self.inputs.store.of_namespace("ReferenceGrant", backend.namespace)
        return any(_grants(grant, own, backend.name) for grant in grants)


def _grants(grant: L7Object, namespace: str, name: str) -> bool:
    spec = Fields(grant.spec, "spec.")
    try:
        origin = any(
            (f.string("group"), f.string("kind"), f.string("namespace"))
            == (_GROUP, KIND, namespace)
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
