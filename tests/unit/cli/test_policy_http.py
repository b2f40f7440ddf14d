# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy test` predicts the decision of a waypoint about a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cli.conftest import Agent, Ztctl

MANIFESTS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.9
  selector: {app: cart}
  ports: [{name: http, port: 80}, {name: tcp-sql, port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: default}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u1}
spec: {serviceAccountName: web, nodeName: n, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.0.7, podIPs: [{ip: 10.244.0.7}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: cart}]
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
      to: [{operation: {methods: [GET], paths: ["/items/{*}"]}}]
    - when: [{key: "request.headers[x-team]", values: [ops]}]
    - from: [{source: {requestPrincipals: ["issuer/*"]}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: cart, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: cart}]
  jwtRules: [{issuer: issuer, jwksUri: "https://issuer.example/keys", audiences: [cart]}]
"""
WEB = "spiffe://cluster.local/ns/shop/sa/web"


@pytest.fixture
def manifests(tmp_path: Path) -> str:
    path = tmp_path / "objects.yaml"
    path.write_text(MANIFESTS)
    return str(path)


def run(ztctl: Ztctl, manifests: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = ztctl("policy", "test", "-f", manifests, "-o", "json", *arguments)
    return result.exit_code, json.loads(result.stdout) if result.exit_code < 2 else {}


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--from", "shop/web-1", "--to", "http://cart.shop/items/7"], True),
        (["--from", WEB, "--to", "http://cart.shop.svc.cluster.local/items/7?x=1"], True),
        (["--from", WEB, "--to", "http://cart/items/7", "-n", "shop"], True),
        (["--from", WEB, "--to", "http://10.96.0.9/items/7"], True),
        (["--from", WEB, "--to", "http://cart.shop/items/7", "--method", "POST"], False),
        (["--from", WEB, "--to", "http://cart.shop/items/7/8"], False),
        (["--from", WEB, "--to", "http://cart.shop/items/../admin"], False),
        (["--from", "10.1.1.1", "--to", "http://cart.shop/items/7"], False),
        (["--from", "10.1.1.1", "--to", "http://cart.shop", "-H", "X-Team: ops"], True),
    ],
)
def test_request_is_decided(
    ztctl: Ztctl, manifests: str, arguments: list[str], allowed: bool
) -> None:
    code, decision = run(ztctl, manifests, *arguments)
    assert code == (0 if allowed else 1)
    assert decision["allowed"] is allowed
    assert decision["status"] == (0 if allowed else 403)
    assert decision["to"]["waypoint"] == "shop/way"


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"iss": "issuer", "sub": "alice", "aud": "cart"}, 0),
        ({"iss": "issuer", "sub": "alice"}, 403),
        ({"iss": "other", "sub": "alice"}, 401),
    ],
)
def test_token_is_considered(
    ztctl: Ztctl, manifests: str, claims: dict[str, str], status: int
) -> None:
    arguments = ["--from", "10.1.1.1", "--to", "http://cart.shop/", "--claims", json.dumps(claims)]
    _, decision = run(ztctl, manifests, *arguments)
    assert decision["status"] == status


def test_text_names_the_rule(ztctl: Ztctl, manifests: str) -> None:
    arguments = ["--from", "shop/web-1", "--to", "http://cart.shop/items/7"]
    result = ztctl("policy", "test", "-f", manifests, *arguments)
    assert "decision  allowed" in result.stdout
    assert "allowed by AuthorizationPolicy shop/cart, rules[0]" in result.stdout
    assert "ns[shop]-policy[cart]-rule[0]" in result.stdout


def test_tcp_port_is_decided_without_the_request(ztctl: Ztctl, manifests: str) -> None:
    code, decision = run(ztctl, manifests, "--from", WEB, "--to", "http://cart.shop:5432/items/7")
    assert code == 1
    assert decision["to"]["protocol"] == "tcp"


def test_missing_waypoint_denies(ztctl: Ztctl, tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    path.write_text(MANIFESTS.replace("kind: Gateway\n", "kind: Ignored\n"))
    code, decision = run(ztctl, str(path), "--from", WEB, "--to", "http://cart.shop/items/7")
    assert code == 1
    assert "does not exist" in decision["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", WEB, "--to", "http://plain/"], "has no waypoint"),
        (["--from", WEB, "--to", "http://none/"], "no service none"),
        (["--from", WEB, "--to", "http://cart.shop:81/"], "no TCP port 81"),
        (["--from", "shop/none", "--to", "http://cart.shop/"], "no pod shop/none"),
        (["--from", "spiffe://x", "--to", "http://cart.shop/"], "spiffe://<trust domain>"),
        (["--from", WEB, "--to", "http://cart.shop/", "-H", "x"], "is no header"),
        (["--from", WEB, "--to", "http://cart.shop/", "--claims", "[]"], "no JSON object"),
        (["--from", WEB, "--to", "shop/web-1:80"], "-f needs --to http://"),
    ],
)
def test_invalid_question_is_an_error(
    ztctl: Ztctl, manifests: str, arguments: list[str], message: str
) -> None:
    result = ztctl("policy", "test", "-f", manifests, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_authorizer_is_named_if_the_mesh_config_is_known(ztctl: Ztctl, tmp_path: Path) -> None:
    path, config = tmp_path / "objects.yaml", tmp_path / "mesh"
    custom = "action: CUSTOM\n  provider: {name: auth}\n  rules:"
    path.write_text(MANIFESTS.replace("rules:", custom, 1))
    provider = "{service: plain.default.svc.cluster.local, port: 80}"
    config.write_text(f"extensionProviders: [{{name: auth, envoyExtAuthzGrpc: {provider}}}]")
    arguments = ["--from", WEB, "--to", "http://cart.shop/items/7"]
    assert run(ztctl, str(path), *arguments)[0] == 2
    code, decision = run(ztctl, str(path), *arguments, "--mesh-config", str(config))
    assert code == 0
    assert decision["authorizers"] == ["auth"]


def test_running_agent_is_asked(ztctl: Ztctl, tmp_path: Path) -> None:
    objects = [obj for obj in yaml.safe_load_all(MANIFESTS) if "istio" in obj["apiVersion"]]
    service = {
        "namespace": "shop",
        "name": "cart",
        "key": "shop/cart",
        "vips": ["10.96.0.9"],
        "hostname": "cart.shop.svc.cluster.local",
        "ports": [{"port": 80, "name": "http", "protocol": "TCP", "app_protocol": "http"}],
        "endpoints": [],
        "waypoint": "shop/way",
    }
    settings = {"trust_domain": "cluster.local", "root_namespace": "istio-system"}
    with Agent(tmp_path / "run") as agent:
        agent.answers = {
            "/v1/l7": {"settings": settings, "objects": objects},
            "/v1/services": {"services": [service]},
            "/v1/workloads": {"workloads": []},
        }
        result = ztctl(
            *("policy", "test", "--run-dir", str(agent.run_dir), "--from", WEB),
            *("--to", "http://cart.shop/items/7"),
        )
    assert result.exit_code == 0, result.output
