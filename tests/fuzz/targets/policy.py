# SPDX-License-Identifier: Apache-2.0
"""Manifests, from text to a decision.

A text is a list of objects or a DocumentError; an object is parsed, or rejected into a policy that
denies; the proxies decode the same policy; decisions never raise.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgspec
import yaml

from tests.fuzz.target import Target
from tests.support.policies import CLIENT, WEB
from ztunnel.kube.objects.manifests import DocumentError, parse_objects
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.policy.model import (
    Action,
    AuthorizationPolicy,
    MtlsMode,
    PeerAuthentication,
    Policy,
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Policy] = msgspec.msgpack.Decoder(Policy)

ASKED = (
    AuthzRequest("10.244.2.3", CLIENT, SocketAddress("10.244.1.7", 80)),
    AuthzRequest("fd00::3", "", SocketAddress("fd00::7", 5432)),
)


def check(octets: bytes) -> None:
    try:
        objects = parse_objects(octets.decode("utf-8"), "fuzz.yaml")
    except (DocumentError, UnicodeDecodeError):
        return
    mirror = ClusterView("cluster.local", "Kubernetes", root_namespace="istio-system")
    for obj in objects.values():
        mirror.upsert(obj)
    change = mirror.drain()
    for value in change.policies:
        _check_policy(value)
    policies = PolicyEngine()
    policies.apply(change)
    for asked in ASKED:
        policies.decide(WEB, asked)
    for key in objects:
        mirror.delete(key.kind, key.namespace, key.name)
    assert not mirror.errors()
    assert not mirror.snapshot(), "something is left of objects that are gone"


def _check_policy(value: Policy) -> None:
    assert _decoder.decode(_encoder.encode(value)) == value
    if not value.refused:
        return
    if isinstance(value, PeerAuthentication):
        assert value.mode is MtlsMode.STRICT
    elif isinstance(value, AuthorizationPolicy) and not value.ignored:
        matches_all = any(not rule.groups and not rule.never_matches for rule in value.rules)
        assert matches_all == (value.action is Action.DENY)


_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 65536, 1.5, "", "*", "**", "a*b", "10.0.0.0/33", "::/0", "0"),
    *([], {}, [[]], [{}], ["*"], [None], {"matchLabels": {}}, "\u2028", "x" * 300, 10**30),
)
_KEYS = (
    *("from", "to", "when", "source", "operation", "principals", "notPrincipals", "namespaces"),
    *("ipBlocks", "notIpBlocks", "ports", "methods", "key", "values", "notValues", "rules"),
    *("action", "selector", "matchLabels", "targetRefs", "mtls", "mode", "portLevelMtls", "spec"),
    *("metadata", "name", "namespace", "annotations", "kind", "apiVersion", "items", "hosts"),
    *("addresses", "endpoints", "resolution", "location", "exportTo", "workloadSelector"),
)


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    """Replace, rename or remove a few nodes of the tree."""
    documents: list[Any] = []
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        documents = list(yaml.load_all(octets.decode("utf-8"), Loader=yaml.CSafeLoader))
    for _ in range(chance.randint(1, 3)):
        _change(documents, chance)
    try:
        return yaml.dump_all(documents, Dumper=yaml.CSafeDumper).encode("utf-8", "replace")
    except (yaml.YAMLError, RecursionError, TypeError, ValueError):
        return octets


def _change(node: Any, chance: random.Random) -> None:
    for _ in range(12):  # descend until a node is selected
        if not isinstance(node, dict | list) or not node:
            return
        key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
            node = node[key]
            continue
        how = chance.randrange(4)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[chance.choice(_KEYS)] = node.pop(key)
        elif how == 1 and isinstance(node, list):
            node.append(node[key])
        elif how == 2 and isinstance(node, dict):
            node[chance.choice(_KEYS)] = chance.choice(_ODD)
        else:
            node[key] = chance.choice(_ODD)
        return


_ALLOW = b"""apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/front/sa/*"], notNamespaces: [evil]}
    - source: {ipBlocks: [10.0.0.0/8, "fd00::/8"], serviceAccounts: [front/client]}
    to:
    - operation: {ports: ["80", "443"]}
    when:
    - {key: destination.ip, notValues: [10.1.0.0/16]}
"""
_DENY = b"""apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  {name: deny, namespace: istio-system, annotations: {istio.io/dry-run: "true"}}
spec:
  action: DENY
  targetRefs: [{kind: Service, name: web}]
  rules:
  - to: [{operation: {methods: [GET], ports: ["5432"]}}]
  - {}
"""
_PEER = b"""apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop, creationTimestamp: 2024-01-01T00:00:00Z}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
  portLevelMtls: {5432: {mode: PERMISSIVE}, "80": {mode: DISABLE}}
"""
_LIST = b"""{"kind": "List", "items": [
 {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
 {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
  "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80}]}}]}
"""
_ENTRY = b"""apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec:
  hosts: [api.example.com, "*.example.org"]
  addresses: [240.240.0.7]
  ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.7, ports: {tls: 9443}}, {address: "2001:db8::7"}]
  exportTo: [".", front]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: names, namespace: shop}
spec:
  hosts: [db.example.net]
  ports: [{number: 5432, name: sql, protocol: TCP}]
  resolution: DNS
  location: MESH_EXTERNAL
"""

TARGET = Target(
    check,
    seeds=(_ALLOW, _DENY, _PEER, _LIST, _ENTRY, _ALLOW + b"---\n" + _PEER),
    mutate=_mutate,
    words=(*(key.encode() for key in _KEYS), b"&a", b"*a", b"<<", b"!!", b"---\n", b"\xc2\x85"),
    max_len=2500,
)
