# SPDX-License-Identifier: Apache-2.0
"""A mesh and L7 objects from short descriptions, compiled for the waypoint `default/waypoint`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from tests.unit.mesh.builders import Mesh
from ztunnel.l7.compile import compile_gateway
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.objects import l7_object
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Endpoint, Service, ServicePort, Workload

GATEWAY = "default/waypoint"
LOOPBACK = "127.0.0.1"


class World:
    """Services whose endpoints are ports of 127.0.0.1, and objects as YAML."""

    def __init__(self) -> None:
        self.mesh = Mesh()
        self.store = L7Store()
        self.settings = Settings()
        self._vips = 0

    @property
    def inputs(self) -> Inputs:
        """The inputs of a compilation."""
        return Inputs(self.store, self.mesh.state, self.settings)

    def service(
        self,
        name: str,
        ports: dict[int, str] | None = None,
        backends: Iterable[int] = (),
        *,
        namespace: str = "default",
        waypoint: str = GATEWAY,
        labels: dict[str, str] | None = None,
        transport: str = "TCP",
    ) -> tuple[str, int]:
        """Add a service; `ports` maps a port to its appProtocol. Returns VIP and first port.

        Each port of `backends` is one ready pod, whose namespace is the service's.
        """
        ports = ports or {80: "http"}
        self._vips += 1
        vip = f"10.96.{self._vips // 250}.{self._vips % 250 + 1}"
        endpoints = []
        for number, backend in enumerate(backends):
            pod = self.pod(f"{name}-{number}", namespace=namespace, labels=labels or {})
            targets = {f"p{port}": backend for port in ports}
            endpoints.append(Endpoint(address=LOOPBACK, ports=targets, workload=pod.uid))
        self.mesh.put(
            Service(
                namespace=namespace,
                name=name,
                vips=(vip,),
                hostname=f"{name}.{namespace}.svc.cluster.local",
                ports=tuple(ServicePort(p, f"p{p}", transport, a) for p, a in ports.items()),
                endpoints=tuple(endpoints),
                waypoint=waypoint,
            )
        )
        return vip, next(iter(ports))

    def entry(self, host: str, ports: dict[int, str], *, dynamic: int = 0, **fields: Any) -> str:
        """Add a host of a ServiceEntry; returns its VIP.

        `ports` maps a port to its protocol. `dynamic`: the target port if Envoy resolves names.
        """
        self._vips += 1
        vip = f"240.240.0.{self._vips}"
        names = [f"p{port}" for port in ports]
        base: dict[str, Any] = {
            "namespace": "default",
            "name": host,
            "hostname": host,
            "vips": (vip,),
            "ports": tuple(ServicePort(p, f"p{p}", "TCP", a) for p, a in ports.items()),
            "is_service_entry": True,
            "entry": "external",
            "waypoint": GATEWAY,
            "dynamic_ports": dict.fromkeys(names, dynamic) if dynamic else {},
        }
        self.mesh.put(Service(**(base | fields)))
        return vip

    def pod(
        self,
        name: str,
        addresses: tuple[str, ...] = (),
        *,
        namespace: str = "default",
        waypoint: str = "",
        labels: dict[str, str] | None = None,
    ) -> Workload:
        """Add a pod."""
        pod = Workload(
            uid=f"Kubernetes//Pod/{namespace}/{name}",
            pod_uid=f"uid-{namespace}-{name}",
            name=name,
            namespace=namespace,
            service_account="default",
            node="node",
            addresses=addresses,
            waypoint=waypoint,
            labels=labels or {},
        )
        self.mesh.put(pod)
        return pod

    def apply(self, text: str) -> World:
        """Add the objects of a YAML stream."""
        for document in yaml.safe_load_all(text):
            if document is not None:
                self.store.put(l7_object(document))
        return self

    def add(self, obj: dict[str, Any]) -> World:
        """Add one object."""
        self.store.put(l7_object(obj))
        return self

    def compile(self, gateway: str = GATEWAY) -> GatewayConfig:
        """Compile the configuration of the waypoint."""
        return compile_gateway(self.inputs, gateway)
