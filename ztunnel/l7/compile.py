# SPDX-License-Identifier: Apache-2.0
"""Compiles the configuration of a gateway's Envoys from the mesh and the L7 objects."""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.l7.config import ClusterRef, GatewayConfig, Json
from ztunnel.l7.ingress.compile import DEFECT, IngressCompiler
from ztunnel.l7.ingress.listeners import is_ingress_gateway
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.names import WAYPOINT_LISTENER, TypeUrl
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.routing.destinations import pod_unit, service_unit
from ztunnel.l7.routing.envoy.clusters import service_cluster
from ztunnel.l7.routing.envoy.listener import waypoint_listener
from ztunnel.l7.routing.tracking import Memo
from ztunnel.l7.routing.units import ClusterUnit, DestinationUnit
from ztunnel.l7.telemetry import fields as telemetry
from ztunnel.mesh.model import Service, Workload

__all__ = ["DEFECT", "GatewayCompiler", "compile_gateway"]


class GatewayCompiler:
    """Compiles one gateway repeatedly. Parts whose inputs have not changed are not compiled again,
    and are the identical objects in the next configuration."""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self._destinations: Memo[DestinationUnit] = Memo()
        self._clusters: Memo[ClusterUnit] = Memo()
        self._routes = RouteIndex()
        self._ingress: IngressCompiler | None = None

    @property
    def recompiled(self) -> tuple[int, int]:
        """The numbers of destinations and clusters that the last call compiled."""
        if self._ingress is not None:
            return self._ingress.recompiled
        return self._destinations.computed, self._clusters.computed

    def compile(self, inputs: Inputs) -> GatewayConfig:
        """Return the configuration. Pure, apart from the cache."""
        self._routes.refresh(inputs.store)
        namespace, _, name = self.gateway.partition("/")
        gateway = inputs.store.get("Gateway", namespace, name)
        if gateway is not None and is_ingress_gateway(inputs.store, gateway):
            self._ingress = self._ingress or IngressCompiler(self.gateway)
            return self._ingress.compile(inputs, gateway, self._routes)
        self._ingress = None
        self._destinations.start()
        self._clusters.start()
        units = self._units(inputs)
        refs = sorted({ref for unit in units for ref in unit.uses})
        clusters = {ref: self._cluster(inputs, ref) for ref in refs}
        self._destinations.finish()
        self._clusters.finish()
        return _assembled(inputs, units, clusters, self._routes.problems)

    def _units(self, inputs: Inputs) -> list[DestinationUnit]:
        """The units of services and pods. Of two that claim an address, the first gets it: an
        author of ServiceEntries must not take over the connections of a Service or pod."""
        found = (s for s in inputs.mesh.services() if s.waypoint == self.gateway)
        services = sorted((s for s in found if not s.waypoint_error), key=_service_key)
        found_pods = (w for w in inputs.mesh.workloads() if w.waypoint == self.gateway)
        pods = sorted((w for w in found_pods if not w.waypoint_error), key=_pod_key)
        return [
            *(self._service(inputs, each) for each in services if not each.is_service_entry),
            *(self._pod(inputs, each) for each in pods),
            *(self._service(inputs, each) for each in services if each.is_service_entry),
        ]

    def _service(self, inputs: Inputs, service: Service) -> DestinationUnit:
        routes = self._routes.of_service(service)
        return self._destinations.get(
            ("service", service.key),
            inputs,
            lambda tracked: _unit(
                lambda: service_unit(tracked, self.gateway, service, routes),
                ("Service", service.namespace, service.name),
            ),
            (service, *routes),
        )

    def _pod(self, inputs: Inputs, pod: Workload) -> DestinationUnit:
        return self._destinations.get(
            ("pod", pod.uid),
            inputs,
            lambda tracked: _unit(
                lambda: pod_unit(tracked, self.gateway, pod), ("Pod", pod.namespace, pod.name)
            ),
            (pod,),
        )

    def _cluster(self, inputs: Inputs, ref: ClusterRef) -> ClusterUnit:
        return self._clusters.get(
            ref,
            inputs,
            lambda tracked: _cluster_unit(
                lambda: service_cluster(tracked, self.gateway, ref), ref.service
            ),
        )


def _unit(make: Callable[[], DestinationUnit], of: tuple[str, str, str]) -> DestinationUnit:
    """The unit; after a defect, one without chains: Envoy closes connections to it, and all other
    destinations are unaffected."""
    try:
        return make()
    except Exception as error:
        return DestinationUnit(problems=(_defect(error, *of),))


def _cluster_unit(make: Callable[[], ClusterUnit], service: str) -> ClusterUnit:
    """The same for a cluster: requests to it get status 503."""
    try:
        return make()
    except Exception as error:
        namespace, _, name = service.partition("/")
        return ClusterUnit(None, None, (_defect(error, "Service", namespace, name),))


def _defect(error: Exception, kind: str, namespace: str, name: str) -> Problem:
    return Problem(
        kind=kind,
        namespace=namespace,
        name=name,
        message=f"not compiled, connections are refused: {type(error).__name__}: {error}"[:512],
        severity=Severity.ERROR,
        reason=DEFECT,
    )


def compile_gateway(inputs: Inputs, gateway: str) -> GatewayConfig:
    """Return the configuration of the gateway `namespace/name`. Pure."""
    return GatewayCompiler(gateway).compile(inputs)


def _assembled(
    inputs: Inputs,
    units: list[DestinationUnit],
    clusters: dict[ClusterRef, ClusterUnit],
    invalid: tuple[Problem, ...],
) -> GatewayConfig:
    routes: dict[str, Json] = {}
    all_clusters = {each["name"]: each for each in telemetry.clusters(inputs)}
    endpoints: dict[str, Json] = {}
    problems = {*invalid, *telemetry.problems(inputs)}
    for unit in units:
        routes |= unit.routes
        all_clusters |= unit.clusters
        problems |= set(unit.problems)
    for ref, each in clusters.items():
        problems |= set(each.problems)
        if each.cluster is not None:
            all_clusters[ref.name] = each.cluster
        if each.endpoints is not None:
            endpoints[ref.name] = each.endpoints
    branches = [branch for unit in units for branch in unit.branches]
    chains = [chain for unit in units for chain in unit.chains]
    listeners = {}
    if chains:  # Envoy rejects a listener without any
        listeners[WAYPOINT_LISTENER] = waypoint_listener(branches, chains)
    resources = {
        TypeUrl.LISTENER: listeners,
        TypeUrl.ROUTE: routes,
        TypeUrl.CLUSTER: all_clusters,
        TypeUrl.ENDPOINT: endpoints,
    }
    return GatewayConfig(resources, tuple(sorted(problems)))


def _service_key(service: Service) -> str:
    return service.key


def _pod_key(pod: Workload) -> str:
    return pod.uid
