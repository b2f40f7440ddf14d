# SPDX-License-Identifier: Apache-2.0
"""`ztctl analyze` names what is ignored or only partly honoured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cli.conftest import Agent, Ztctl

NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way}}
---
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.9, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
"""
PLAIN_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: other}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
"""
WORKING = NAMESPACE + GATEWAY + SERVICE + PLAIN_SERVICE


def policy(name: str, spec: str, kind: str = "AuthorizationPolicy", namespace: str = "shop") -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---
"""


def target(name: str, kind: str = "Service") -> str:
    group = "" if kind == "Service" else "gateway.networking.k8s.io"
    return f'targetRefs: [{{kind: {kind}, group: "{group}", name: {name}}}]'


RULE = "rules: [{to: [{operation: {methods: [GET]}}]}]"
CUSTOM = "action: CUSTOM, provider: {name: missing}"


def findings(
    ztctl: Ztctl, tmp_path: Path, text: str, *arguments: str
) -> tuple[int, list[dict[str, Any]]]:
    path = tmp_path / "objects.yaml"
    path.write_text(text)
    result = ztctl("analyze", str(path), "-o", "json", *arguments)
    assert result.exit_code < 2, result.output
    return result.exit_code, json.loads(result.stdout)


def entry(host: str, resolution: str, labels: str = "{}", namespace: str = "shop") -> str:
    ports = "[{number: 443, name: tls, protocol: TLS}]"
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: external, namespace: {namespace}, labels: {labels}}}
spec: {{hosts: ["{host}"], ports: {ports}, resolution: {resolution}}}
---
"""


OUTSIDE = "endpoints: [{address: 192.0.2.1}]"
OPT_OUT = '{networking.istio.io/enable-autoallocate-ip: "false"}'
CASES = [
    (
        entry("a.example.com", f"STATIC, {OUTSIDE}", OPT_OUT),
        "error",
        "ServiceEntry",
        "no virtual address",
    ),
    (
        entry("a.example.com", "STATIC, endpoints: [{address: 192.0.2.1, weight: 3, locality: r}]"),
        "error",
        "ServiceEntry",
        "endpoints: locality, weight have no effect",
    ),
    (
        entry("*.example.com", "DYNAMIC_DNS", namespace="other"),
        "error",
        "ServiceEntry",
        "a waypoint resolves its names",
    ),
    (
        policy("p", f"{{{target('cart')}, rules: [{{form: []}}]}}"),
        "error",
        "AuthorizationPolicy",
        "invalid, allows nothing instead",
    ),
    (
        policy("p", f"{{{target('none')}, {RULE}}}"),
        "warning",
        "AuthorizationPolicy",
        "Service shop/none does not exist",
    ),
    (
        policy("p", f"{{{target('gone', 'Gateway')}, {RULE}}}"),
        "warning",
        "AuthorizationPolicy",
        "Gateway shop/gone does not exist",
    ),
    (
        policy("p", f"{{{target('plain')}, {RULE}}}", namespace="other"),
        "warning",
        "AuthorizationPolicy",
        "HTTP requests, which nodes do not see",
    ),
    (
        policy("p", f"{{selector: {{matchLabels: {{app: x}}}}, {RULE}}}"),
        "warning",
        "AuthorizationPolicy",
        "HTTP requests, which nodes do not see",
    ),
    (
        policy("p", f"{{{target('cart')}, {CUSTOM}, {RULE}}}"),
        "warning",
        "AuthorizationPolicy",
        "external authorizers are not known here",
    ),
    (
        policy("p", "{jwtRules: []}", "RequestAuthentication"),
        "ignored",
        "RequestAuthentication",
        "has no targetRefs",
    ),
    (
        policy("p", f"{{{target('plain')}, jwtRules: []}}", "RequestAuthentication", "other"),
        "ignored",
        "RequestAuthentication",
        "uses no waypoint",
    ),
    (
        policy("p", "{mtls: {mode: DISABLE}}", "PeerAuthentication"),
        "warning",
        "PeerAuthentication",
        "handled as PERMISSIVE",
    ),
    (
        policy("p", "{mtls: {mode: NONE}}", "PeerAuthentication"),
        "error",
        "PeerAuthentication",
        "fails closed",
    ),
    (
        """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: f, namespace: shop}
spec: {}
""",
        "ignored",
        "EnvoyFilter",
        "gateways do not read it",
    ),
    (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ingress, namespace: shop}
spec: {gatewayClassName: nginx, listeners: []}
""",
        "ignored",
        "Gateway",
        "another controller runs it",
    ),
    (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: ztunnel
  listeners: [{name: a, port: 15008, protocol: HTTP}]
""",
        "error",
        "Gateway",
        "belong to the mesh",
    ),
    (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: ztunnel
  listeners: [{name: a, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: other}
spec:
  parentRefs: [{name: edge, namespace: shop}]
""",
        "error",
        "HTTPRoute",
        "do not allow namespace other",
    ),
    (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: other}
spec:
  parentRefs: [{kind: Service, group: "", name: plain}]
  rules: [{backendRefs: [{name: plain, port: 80}]}]
""",
        "ignored",
        "HTTPRoute",
        "uses no waypoint",
    ),
    (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: "", name: cart}]
  rules: [{backendRefs: [{name: none, port: 80}]}]
""",
        "error",
        "HTTPRoute",
        "none",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[2]}: {case[3]}")
def test_problem_is_found(ztctl: Ztctl, tmp_path: Path, case: tuple[str, str, str, str]) -> None:
    text, severity, kind, message = case
    code, rows = findings(ztctl, tmp_path, WORKING + text)
    found = [row for row in rows if row["kind"] == kind and message in row["message"]]
    assert {row["severity"] for row in found} == {severity}, rows
    assert code == (1 if severity == "error" else 0)


VIRTUAL_SERVICE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: shop}
spec: {hosts: [HOST], http: [{route: [{destination: {host: cart}}]}]}
---
"""
HTTP_ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: "", name: cart}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
"""


def test_virtual_service_without_effect_is_named(ztctl: Ztctl, tmp_path: Path) -> None:
    used = WORKING + VIRTUAL_SERVICE.replace("HOST", "cart")
    assert findings(ztctl, tmp_path, used) == (0, [])
    for text, message in (
        (
            WORKING + VIRTUAL_SERVICE.replace("HOST", "none"),
            "applies to no service",
        ),
        (used + HTTP_ROUTE, "shop/cart has an HTTPRoute, which replaces"),
    ):
        _, (row,) = findings(ztctl, tmp_path, text)
        assert (row["kind"], row["severity"]) == ("VirtualService", "ignored")
        assert message in row["message"]


def test_working_objects_have_no_problem(ztctl: Ztctl, tmp_path: Path) -> None:
    assert findings(ztctl, tmp_path, WORKING + policy("p", f"{{{target('cart')}, {RULE}}}")) == (
        0,
        [],
    )


def test_missing_waypoint_is_an_error_of_its_service(ztctl: Ztctl, tmp_path: Path) -> None:
    code, rows = findings(ztctl, tmp_path, NAMESPACE + SERVICE)
    assert code == 1
    assert [(row["kind"], row["name"], row["reason"]) for row in rows] == [
        ("Service", "cart", "WaypointUnusable")
    ]


def test_namespace_and_threshold(ztctl: Ztctl, tmp_path: Path) -> None:
    text = WORKING + policy("p", "{jwtRules: []}", "RequestAuthentication")
    assert findings(ztctl, tmp_path, text, "-n", "other") == (0, [])
    assert findings(ztctl, tmp_path, text, "-n", "shop", "--failure-threshold", "ignored")[0] == 1
    assert findings(ztctl, tmp_path, text, "-A", "--failure-threshold", "warning")[0] == 0


def test_authorizers_are_checked_with_a_mesh_config(ztctl: Ztctl, tmp_path: Path) -> None:
    text = WORKING + policy("p", f"{{{target('cart')}, {CUSTOM}, {RULE}}}")
    config = tmp_path / "mesh.txt"
    config.write_text("extensionProviders: []")
    code, rows = findings(ztctl, tmp_path, text, "--mesh-config", str(config))
    assert code == 1
    assert "no valid extension provider missing" in rows[0]["message"]
    provider = "{service: cart.shop.svc.cluster.local, port: 80}"
    config.write_text(f"extensionProviders: [{{name: missing, envoyExtAuthzGrpc: {provider}}}]")
    assert findings(ztctl, tmp_path, text, "--mesh-config", str(config)) == (0, [])


def test_table(ztctl: Ztctl, tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    path.write_text(WORKING)
    result = ztctl("analyze", str(path))
    assert (result.exit_code, result.stdout) == (0, "No problem found.\n")
    path.write_text(WORKING + policy("p", "{jwtRules: []}", "RequestAuthentication"))
    assert ztctl("analyze", str(tmp_path)).stdout.startswith("SEVERITY  KIND ")


@pytest.mark.parametrize("arguments", [["none.yaml"], ["-n", "a", "-A", "x.yaml"]])
def test_error_is_not_a_result(ztctl: Ztctl, arguments: list[str]) -> None:
    assert ztctl("analyze", *arguments).exit_code == 2


def test_running_mesh_is_read_from_an_agent(ztctl: Ztctl, tmp_path: Path) -> None:
    text = policy("p", f"{{{target('none')}, {RULE}}}")
    with Agent(tmp_path / "run") as agent:
        agent.answers = {
            "/v1/l7": {"settings": {}, "objects": list(yaml.safe_load_all(text))[:1]},
            "/v1/services": {"services": []},
            "/v1/workloads": {"workloads": []},
            "/v1/status": {"source": {"errors": {"Pod shop/a": "spec is invalid"}}},
            "/v1/policies": {"policies": []},
        }
        result = ztctl("analyze", "--run-dir", str(agent.run_dir), "-o", "json")
    rows = [(row["kind"], row["name"], row["severity"]) for row in json.loads(result.stdout)]
    assert rows == [("Pod", "a", "error"), ("AuthorizationPolicy", "p", "warning")]
    assert result.exit_code == 1


def test_entries_that_the_controller_gives_addresses_are_no_problem(
    ztctl: Ztctl, tmp_path: Path
) -> None:
    made = entry("a.example.com", f"STATIC, {OUTSIDE}") + entry("*.example.com", "DYNAMIC_DNS")
    assert findings(ztctl, tmp_path, WORKING + made) == (0, [])


EDGE = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: ztunnel
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
"""
DESTINATION_RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: shop}
spec:
  host: plain.other.svc.cluster.local
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
---
"""


def test_destination_rule_of_an_ingress_gateway_has_an_effect(ztctl: Ztctl, tmp_path: Path) -> None:
    _, rows = findings(ztctl, tmp_path, WORKING + DESTINATION_RULE)
    assert [row["kind"] for row in rows] == ["DestinationRule"]
    assert findings(ztctl, tmp_path, WORKING + DESTINATION_RULE + EDGE) == (0, [])


def test_virtual_service_cannot_route_for_a_gateway(ztctl: Ztctl, tmp_path: Path) -> None:
    text = VIRTUAL_SERVICE.replace("HOST", "cart").replace(
        "spec: {", "spec: {gateways: [shop/edge, mesh], "
    )
    _, rows = findings(ztctl, tmp_path, WORKING + EDGE + text)
    assert [(row["kind"], row["field"], row["severity"]) for row in rows] == [
        ("VirtualService", "spec.gateways", "ignored")
    ]
    assert "HTTPRoute" in rows[0]["message"]


INGRESS_POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec:
  selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: edge}}
  action: DENY
  rules: [{to: [{operation: {paths: [/admin]}}]}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: edge}}
  jwtRules: []
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: addresses, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  action: DENY
  rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]
---
"""


def test_policies_of_an_ingress_gateway_are_no_problem(ztctl: Ztctl, tmp_path: Path) -> None:
    assert findings(ztctl, tmp_path, WORKING + INGRESS_POLICIES + EDGE) == (0, [])
    _, rows = findings(ztctl, tmp_path, WORKING + INGRESS_POLICIES)
    assert {row["name"] for row in rows} == {"paths", "tokens", "addresses"}


@pytest.mark.parametrize(
    ("parent", "allowed", "expected"),
    [
        ("none", "All", ("warning", "Gateway shop/none does not exist")),
        ("way", "All", ("ignored", "is not an ingress gateway")),
        ("edge", "None", ("error", "does not admit ListenerSets of namespace shop")),
        ("edge", "Same", None),
    ],
)
def test_listener_set_without_effect_is_named(
    ztctl: Ztctl, tmp_path: Path, parent: str, allowed: str, expected: tuple[str, str] | None
) -> None:
    listeners = f"allowedListeners: {{namespaces: {{from: {allowed}}}}}"
    gateway = EDGE.replace("gatewayClassName: ztunnel", f"gatewayClassName: ztunnel\n  {listeners}")
    text = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {{name: more, namespace: shop}}
spec:
  parentRef: {{name: {parent}}}
  listeners: [{{name: a, port: 8080, protocol: HTTP}}]
---
"""
    _, rows = findings(ztctl, tmp_path, WORKING + text + gateway)
    found = [(row["severity"], row["message"]) for row in rows if row["kind"] == "ListenerSet"]
    if expected is None:
        assert found == []
    else:
        assert found[0][0] == expected[0]
        assert expected[1] in found[0][1]
