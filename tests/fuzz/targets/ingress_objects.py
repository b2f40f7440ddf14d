# SPDX-License-Identifier: Apache-2.0
"""Objects that configure an ingress gateway, from JSON to Envoy's resources.

Compiling never raises and has no defect, Envoy's API can encode the result, no two filter chains
of a listener match the same connections, and the gateway of another namespace stays as it was.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tests.fuzz.target import Target
from tests.fuzz.targets import l7_objects
from tests.support.waypoint.world import World
from ztunnel.gateway.xds import descriptors
from ztunnel.gateway.xds.resources import ResourceEncoder
from ztunnel.kube.objects.l7_kinds import GATEWAY_CERTIFICATES_ANNOTATION
from ztunnel.l7.compile import DEFECT, compile_gateway
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.names import CertificateSource, TypeUrl, ca_id, certificate_id
from ztunnel.l7.objects import L7_KINDS

GATEWAY, OTHER = "shop/edge", "other/front"
# Kinds that concern no gateway of another namespace that has not admitted them.
_SEPARATE = ("Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")
_API = descriptors.load()


def _gateway(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    sources = [CertificateSource("ConfigMap", namespace, "ca")]
    files = {f"{certificate_id('Secret', namespace, 'web')}.crt": "0", f"{ca_id(sources)}.ca": "0"}
    metadata = {
        "name": name,
        "namespace": namespace,
        "annotations": {GATEWAY_CERTIFICATES_ANNOTATION: json.dumps(files)},
    }
    certificate = {"certificateRefs": [{"name": "web"}]}
    listeners = [
        {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.example"},
        {"name": "web", "port": 443, "protocol": "HTTPS", "hostname": "a.example"},
        {"name": "end", "port": 443, "protocol": "TLS", "hostname": "b.example"},
        {"name": "pass", "port": 443, "protocol": "TLS", "hostname": "*.example"},
        {"name": "tcp", "port": 6379, "protocol": "TCP"},
        {"name": "udp", "port": 53, "protocol": "UDP"},
    ]
    listeners[1]["tls"] = listeners[2]["tls"] = certificate
    listeners[3]["tls"] = {"mode": "Passthrough"}
    found = {"gatewayClassName": "ztunnel", "listeners": listeners, **spec}
    return {"kind": "Gateway", "metadata": metadata, "spec": found}


def _route(kind: str, namespace: str, gateway: str, **spec: Any) -> dict[str, Any]:
    port = 53 if kind == "UDPRoute" else 80
    rules = [{"backendRefs": [{"name": "web", "port": port}, {"name": "none", "port": port}]}]
    return {
        "kind": kind,
        "metadata": {"name": kind.lower(), "namespace": namespace},
        "spec": {"parentRefs": [{"name": gateway}], "rules": rules, **spec},
    }


def _routes(namespace: str, gateway: str) -> list[dict[str, Any]]:
    names = {"hostnames": ["a.example", "*.b.example", "b.example"]}
    found = [_route(kind, namespace, gateway, **names) for kind in ("HTTPRoute", "TLSRoute")]
    return found + [_route(kind, namespace, gateway) for kind in ("TCPRoute", "UDPRoute")]


def _world() -> World:
    world = World()
    for namespace in ("shop", "other"):
        world.service("web", {80: "http"}, [80], namespace=namespace, waypoint="")
    world.add(_gateway("other", "front"))
    for each in _routes("other", "front"):
        world.add(each)
    return world


_BEFORE = compile_gateway(_world().inputs, OTHER).resources


def check(octets: bytes) -> None:
    world = _world()
    kinds = l7_objects.put_objects(world, octets)
    if kinds is None:
        return
    config = compile_gateway(world.inputs, GATEWAY)
    assert not [each for each in config.problems if each.reason == DEFECT], config.problems
    _, invalid = ResourceEncoder(_API).encode(config.resources)
    assert not invalid, invalid
    _check_chains(config)
    if kinds <= set(_SEPARATE):
        assert compile_gateway(world.inputs, OTHER).resources == _BEFORE


def _check_chains(config: GatewayConfig) -> None:
    for listener in config.resources[TypeUrl.LISTENER].values():
        seen: set[str] = set()
        for chain in listener.get("filter_chains", ()):
            match = chain.get("filter_chain_match", {})
            rest = {key: each for key, each in match.items() if key != "server_names"}
            rest.pop("transport_protocol", None)
            for name in match.get("server_names") or [""]:
                key = json.dumps([name, rest])
                assert key not in seen, key
                seen.add(key)


_FRONTEND = {
    "frontend": {
        "default": {
            "validation": {
                "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
                "mode": "AllowInsecureFallback",
            }
        }
    },
    "backend": {"clientCertificateRef": {"name": "web"}},
}
_SET = {
    "kind": "ListenerSet",
    "metadata": {"name": "set", "namespace": "shop"},
    "spec": {
        "parentRef": {"name": "edge"},
        "listeners": [
            {
                "name": "more",
                "port": 443,
                "protocol": "TLS",
                "hostname": "*.b.example",
                "tls": {"mode": "Passthrough"},
            }
        ],
    },
}
_POLICY = {
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {
        "action": "DENY",
        "targetRefs": [
            {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
        ],
        "rules": [
            {
                "from": [{"source": {"remoteIpBlocks": ["10.0.0.0/8", "2001:db8::/32"]}}],
                "to": [{"operation": {"ports": ["6379"]}}],
            }
        ],
    },
}
_TLS_POLICY = {
    "kind": "BackendTLSPolicy",
    "metadata": {"name": "b", "namespace": "shop"},
    "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "validation": {"hostname": "web", "wellKnownCACertificates": "System"},
    },
}
_EDGE = _gateway("shop", "edge", allowedListeners={"namespaces": {"from": "All"}})

TARGET = Target(
    check,
    seeds=tuple(
        msgspec.json.encode(each)
        for each in (
            [_EDGE, *_routes("shop", "edge")],
            [_gateway("shop", "edge", tls=_FRONTEND), *_routes("shop", "edge")[:2], _TLS_POLICY],
            [_EDGE, _SET, *_routes("shop", "edge")[:2]],
            [_EDGE, _POLICY, *_routes("shop", "edge")[2:]],
        )
    ),
    mutate=l7_objects.TARGET.mutate,
    words=tuple(f'"{kind}"'.encode() for kind in L7_KINDS),
    max_len=16000,
)
