# SPDX-License-Identifier: Apache-2.0
"""A waypoint with one service per group of policies, run by a real Envoy.

Requests are raw HTTP/1.1, so that they may be malformed, on connections as the node proxy opens
them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import dial
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import World
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.deployment.bootstrap import RUNTIME
from ztunnel.l7.inputs import Destination, Inputs, Protocol, Settings
from ztunnel.l7.names import WAYPOINT_LISTENER, PeerState, TypeUrl

Object = dict[str, Any]
CLIENT = ("10.244.0.9", 40000)
CART = "spiffe://cluster.local/ns/shop/sa/cart"
_EXTRA = {"layered_runtime": {"layers": [{"name": "static", "static_layer": RUNTIME}]}}
_HEADERS = (("host", "web"),)


class Reply(NamedTuple):
    """A response of Envoy or of the backend."""

    status: int
    headers: dict[str, str]
    body: bytes


def authorization_policy(
    name: str,
    rules: Sequence[Object],
    action: str = "ALLOW",
    *,
    target: Object | None = None,
    namespace: str = "default",
    **spec: Any,
) -> Object:
    """An AuthorizationPolicy; without a target, `Rig.add` attaches it to its service."""
    annotations = {"istio.io/dry-run": "true"} if spec.pop("dry_run", False) else {}
    targets = {"targetRefs": [target]} if target else {}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"action": action, "rules": list(rules), **targets, **spec},
    }


def request_authentication(
    name: str, *rules: Object, target: Object | None = None, namespace: str = "default"
) -> Object:
    """A RequestAuthentication; without a target, `Rig.add` attaches it to its service."""
    targets = {"targetRefs": [target]} if target else {}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"jwtRules": list(rules), **targets},
    }


def target(kind: str, name: str) -> Object:
    """A targetRef."""
    groups = {"Service": "", "ServiceEntry": "networking.istio.io"}
    return {"group": groups.get(kind, "gateway.networking.k8s.io"), "kind": kind, "name": name}


def rule(source: Object | None = None, operation: Object | None = None, *when: Object) -> Object:
    """A rule with at most one source and one operation."""
    found: Object = {}
    if source:
        found["from"] = [{"source": source}]
    if operation:
        found["to"] = [{"operation": operation}]
    if when:
        found["when"] = list(when)
    return found


class PolicyWorld(World):
    """A world with a MeshConfig."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh_config: Object = {}

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.store, self.mesh.state, Settings(mesh_config=self.mesh_config))


@dataclass
class Rig:
    """Services of the waypoint `default/waypoint`. Add all of them before `run`."""

    world: PolicyWorld = field(default_factory=PolicyWorld)
    services: dict[str, tuple[str, int]] = field(default_factory=dict)
    backend: Backend = field(default_factory=lambda: Backend("app"))
    access_log: dict[str, str] = field(default_factory=dict)  # response details by x-request-id
    _envoy: RunningEnvoy | None = None

    def __post_init__(self) -> None:
        spec = {"gatewayClassName": "istio-waypoint"}
        self.world.add(
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": {"name": "waypoint", "namespace": "default"},
                "spec": spec,
            }
        )

    def add(
        self,
        name: str,
        objects: Iterable[Object] = (),
        *,
        protocol: str = "http",
        port: int = 80,
        namespace: str = "default",
    ) -> None:
        """Add a service, and objects, which are attached to it if they have no targetRefs.

        Its IPv6 address is the service `<name>-v6` of `call`.
        """
        self.services[name] = self.world.service(
            name, {port: protocol}, [self.backend.port], namespace=namespace
        )
        found = self.world.mesh.state.service(f"{namespace}/{name}")
        assert found is not None
        mapped = f"fd00::{len(self.services)}"
        self.world.mesh.put(msgspec.structs.replace(found, vips=(*found.vips, mapped)))
        self.services[f"{name}-v6"] = mapped, port
        for obj in objects:
            obj["spec"].setdefault("targetRefs", [target("Service", name)])
            self.world.add(obj)

    @contextmanager
    def run(self, directory: Path, *, decide_only: bool = False) -> Iterator[Rig]:
        """Run Envoy and the backend.

        `decide_only`: Envoy answers allowed requests itself, which is faster, and `access_log` is
        filled at the end.
        """
        config = self.world.compile()
        path = directory / "access.log"
        if decide_only:
            _log_requests(config, path)
            _answer_directly(config)
        with self.backend, running_envoy(config, directory, _EXTRA) as self._envoy:
            yield self
        for line in path.read_text().splitlines() if decide_only else ():
            request, _, details = line.partition(" ")
            self.access_log[request] = details

    @property
    def log(self) -> str:
        """What Envoy has logged."""
        assert self._envoy is not None
        return self._envoy.log.read_text()

    def connect(
        self, service: str, identity: str = CART, source: tuple[str, int] = CLIENT
    ) -> socket.socket:
        """Open a connection to a service, as the node proxy does for a client."""
        assert self._envoy is not None
        peer = {PeerState.IDENTITY: identity}
        return dial(self._envoy.port, self.services[service], peer, source)

    def call(
        self,
        service: str,
        method: str = "GET",
        path: str = "/",
        headers: Iterable[tuple[str, str]] = _HEADERS,
        *,
        identity: str = CART,
        source: tuple[str, int] = CLIENT,
    ) -> Reply:
        """Send a request on a connection of its own."""
        with self.connect(service, identity, source) as sock:
            return exchange(sock, method, path, headers)

    def destination(self, service: str, protocol: Protocol = Protocol.HTTP) -> Destination:
        """The destination that policies of a service are compiled for."""
        namespace = next(s.namespace for s in self.world.mesh.state.services() if s.name == service)
        found = self.world.mesh.state.service(f"{namespace}/{service}")
        assert found is not None
        return Destination(
            gateway="default/waypoint", protocol=protocol, service=found, port=found.ports[0]
        )


def _log_requests(config: GatewayConfig, path: Path) -> None:
    listener = config.resources[TypeUrl.LISTENER][WAYPOINT_LISTENER]
    line = "%REQ(X-REQUEST-ID)% %RESPONSE_CODE_DETAILS%\n"
    log = {
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {"text_format_source": {"inline_string": line}},
        },
    }
    for chain in listener["filter_chains"]:
        chain["filters"][-1]["typed_config"]["access_log"] = [log]


def _answer_directly(config: GatewayConfig) -> None:
    for route_config in config.resources[TypeUrl.ROUTE].values():
        for host in route_config["virtual_hosts"]:
            host["routes"] = [
                {
                    "match": {"prefix": "/"},
                    "direct_response": {"status": 200},
                    "response_headers_to_add": [
                        {"header": {"key": "x-path", "value": "%REQ(:PATH)%"}}
                    ],
                }
            ]


def exchange(
    sock: socket.socket,
    method: str = "GET",
    path: str = "/",
    headers: Iterable[tuple[str, str]] = _HEADERS,
) -> Reply:
    """Send a request without a body, and read the response. Raises ConnectionError."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in rest)
    found: Mapping[str, str] = {key.strip().lower(): value.strip() for key, _, value in pairs}
    while method != "HEAD" and len(body) < int(found.get("content-length", 0)):
        body += _receive(sock)
    return Reply(int(first.split()[1]), dict(found), body)


def _receive(sock: socket.socket) -> bytes:
    chunk = sock.recv(65536)
    if not chunk:
        raise ConnectionError("closed by Envoy")
    return chunk
