# SPDX-License-Identifier: Apache-2.0
"""Our CRDs on a real API server, and policies from there to decisions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.objects import ambient, namespace, pod
from tests.support.apiserver.server import ApiServer
from tests.support.apiserver.source_runner import SourceRunner
from tests.support.waiting import wait_until
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.policy.model import PeerAuthentication

CRDS = Path(__file__).parents[2] / "deploy" / "crds"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def cluster(server: ApiServer) -> ApiServer:
    """With our CRDs and one enrolled pod `a` in namespace `policy`."""
    server.kubectl("apply", "--server-side", "-f", str(CRDS))
    names = [f"crd/{name}.security.istio.io" for name in PLURALS.values()]
    server.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    server.apply(ambient("policy"), namespace("istio-system"), pod("a", "policy", "10.9.0.1"))
    return server


PLURALS = {
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
}


def obj(kind: str, spec: Json, name: str = "p", version: str = "v1", place: str = "policy") -> Json:
    return {
        "apiVersion": f"security.istio.io/{version}",
        "kind": kind,
        "metadata": {"name": name, "namespace": place},
        "spec": spec,
    }


@pytest.fixture
def following(cluster: ApiServer) -> Iterator[SourceRunner]:
    with SourceRunner(cluster.admin_kubeconfig) as made:
        yield made
    for plural in PLURALS.values():
        for place in ("policy", "istio-system"):
            cluster.kubectl("delete", plural, "--all", "-n", place)


def allowed(following: SourceRunner, *, identity: str = "spiffe://cluster.local/ns/x/sa/y") -> bool:
    workload = following.workload("a", "policy")
    asked = AuthzRequest("10.9.0.9", identity, SocketAddress("10.9.0.1", 80))
    return bool(following.state.policies.decide(workload, asked).allowed)


def dates(following: SourceRunner) -> dict[str, str]:
    """Creation times of PeerAuthentications by name, in whole seconds."""
    found = list(following.state.policies)
    return {each.name: each.created for each in found if isinstance(each, PeerAuthentication)}


def put(server: ApiServer, *objects: Json, strict: bool = True) -> None:
    """Apply like kubectl, or like a client without strict validation."""
    for each in objects:
        words = ["apply", "-f", "-", f"--validate={'strict' if strict else 'ignore'}"]
        server.kubectl(*words, stdin=json.dumps(each))


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_policy_create_update_delete(
    cluster: ApiServer, following: SourceRunner, version: str
) -> None:
    assert allowed(following)
    rule = {"from": [{"source": {"namespaces": ["x"]}}]}
    put(cluster, obj("AuthorizationPolicy", {"action": "DENY", "rules": [rule]}, version=version))
    wait_until(lambda: not allowed(following), "the policy")
    put(cluster, obj("AuthorizationPolicy", {"rules": [rule]}, version=version))
    wait_until(lambda: allowed(following), "its change")
    put(cluster, obj("PeerAuthentication", {"mtls": {"mode": "STRICT"}}, version=version))
    put(cluster, obj("AuthorizationPolicy", {"rules": [{}]}))
    wait_until(lambda: not allowed(following, identity=""), "plaintext to be refused")
    cluster.kubectl("delete", "peerauthentication", "p", "-n", "policy")
    wait_until(lambda: allowed(following, identity=""), "plaintext to be let in")


def test_root_namespace_policy_applies_to_mesh(cluster: ApiServer, following: SourceRunner) -> None:
    put(cluster, obj("AuthorizationPolicy", {}, place="istio-system"))
    wait_until(lambda: not allowed(following), "the mesh's policy")


def test_oldest_peer_authentication_takes_precedence(
    cluster: ApiServer, following: SourceRunner
) -> None:
    put(cluster, obj("PeerAuthentication", {"mtls": {"mode": "PERMISSIVE"}}, name="z-first"))
    wait_until(lambda: bool(dates(following)), "the first")
    first = dates(following)["z-first"]
    wait_until(lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}" > first, "the next second")
    put(cluster, obj("PeerAuthentication", {"mtls": {"mode": "STRICT"}}, name="m-second"))
    wait_until(lambda: len(dates(following)) == 2, "both")
    assert dates(following)["m-second"] > first
    assert allowed(following, identity="")


@pytest.mark.parametrize(
    "spec",
    [
        {"actions": "DENY", "rules": [{}]},
        {"action": "DENY", "rules": [{"form": [{"source": {"namespaces": ["x"]}}]}]},
        {"rules": [{"from": [{"source": {"namespaces": ["x"], "principal": ["y"]}}]}]},
    ],
    ids=str,
)
def test_misspelled_field_is_preserved_and_denies(
    cluster: ApiServer, following: SourceRunner, spec: Json
) -> None:
    """If the server dropped the field, each of these would allow instead of deny."""
    put(cluster, obj("AuthorizationPolicy", spec), strict=False)
    wait_until(lambda: not allowed(following), "the refusal")
    assert "no such field" in following.mirror.errors()["AuthorizationPolicy policy/p"]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("AuthorizationPolicy", {"action": "Deny"}),
        ("AuthorizationPolicy", {"rules": [{"from": []}]}),
        ("AuthorizationPolicy", {"rules": [{"from": [{"source": {}}]}]}),
        ("AuthorizationPolicy", {"rules": [{"to": [{"operation": {"ports": [80]}}]}]}),
        ("AuthorizationPolicy", {"targetRefs": [{"kind": "Service"}]}),
        ("PeerAuthentication", {"mtls": {"mode": "strict"}}),
        ("PeerAuthentication", {"portLevelMtls": {"80": {"mode": "STRICT"}}}),
    ],
    ids=str,
)
def test_server_rejects_schema_violations(cluster: ApiServer, kind: str, spec: Json) -> None:
    done = cluster.try_kubectl("apply", "-f", "-", stdin=json.dumps(obj(kind, spec)))
    assert done.returncode != 0
    assert "spec" in done.stderr


def test_service_entry_create_delete(cluster: ApiServer, following: SourceRunner) -> None:
    spec = {
        "hosts": ["api.example.com"],
        "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
        "resolution": "STATIC",
        "endpoints": [{"address": "192.0.2.7"}],
    }
    entry = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "out", "namespace": "policy"},
        "spec": spec,
    }
    put(cluster, entry)
    wait_until(
        lambda: following.state.service_by_hostname("api.example.com") is not None, "the entry"
    )
    put(cluster, {**entry, "spec": {**spec, "endpoint": []}}, strict=False)
    wait_until(lambda: "ServiceEntry policy/out" in following.mirror.errors(), "the refusal")
    assert "no such field" in following.mirror.errors()["ServiceEntry policy/out"]
    cluster.kubectl("delete", "serviceentry", "out", "-n", "policy")
    wait_until(lambda: following.state.service_by_hostname("api.example.com") is None, "it to go")
