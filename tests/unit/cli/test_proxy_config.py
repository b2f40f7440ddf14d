# SPDX-License-Identifier: Apache-2.0
"""`ztctl proxy-config`: tables from what a compiled waypoint's Envoy reports."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.waypoint.world import World
from tests.unit.cli.conftest import Agent, Ztctl
from ztunnel.l7.names import TypeUrl

POD = "default/waypoint-0"
GATEWAYS = {
    "gateways": [
        {"workload": "default/waypoint-1", "gateway": "default/waypoint"},
        {"workload": POD, "gateway": "default/waypoint"},
    ],
    "processes": [],
}
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: default}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
    - matches: [{path: {type: Exact, value: /a}, headers: [{name: x-user, value: ann}]}]
      backendRefs: [{name: web, port: 80, weight: 9}, {name: other, port: 80, weight: 1}]
    - backendRefs: [{name: web, port: 80}]
"""


def _path(view: str) -> str:
    return f"/v1/gateway?pod=default%2Fwaypoint-0&view={view}"


def _section(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.admin.v3.{kind}ConfigDump", **fields}


@pytest.fixture
def waypoint(agent: Agent) -> Agent:
    """An agent with a gateway pod, whose Envoy has the configuration of two services."""
    world = World()
    world.service("web", backends=[8080])
    world.service("other", backends=[8081])
    config = world.apply(ROUTE).compile().resources
    (listener,) = config[TypeUrl.LISTENER].values()
    agent.answers["/v1/gateways"] = GATEWAYS
    agent.answers[_path("config_dump")] = {
        "configs": [
            _section(
                "Listeners",
                static_listeners=[{"listener": {"name": "readiness"}}],
                dynamic_listeners=[
                    {"name": "waypoint", "active_state": {"listener": listener}},
                    {"name": "warming"},
                ],
            ),
            _section(
                "Clusters",
                dynamic_active_clusters=[
                    {"cluster": each} for each in config[TypeUrl.CLUSTER].values()
                ],
            ),
            _section(
                "Routes",
                dynamic_route_configs=[
                    {"route_config": each} for each in config[TypeUrl.ROUTE].values()
                ],
            ),
        ]
    }
    return agent


def _rows(ztctl: Ztctl, agent: Agent, *words: str) -> list[list[str]]:
    done = ztctl("--run-dir", str(agent.run_dir), "proxy-config", *words)
    assert done.exit_code == 0, done.output
    return [line.split() for line in done.output.splitlines()[1:]]


def test_listener_table_has_chains_with_their_addresses(ztctl: Ztctl, waypoint: Agent) -> None:
    rows = _rows(ztctl, waypoint, "listener", "waypoint-0")
    chains = {row[2]: row[3:] for row in rows if row[0] == "waypoint"}
    assert chains["default/web|80"] == ["10.96.0.2:80", "routes", "default/web|80"]
    assert chains["default/other|80"][0] == "10.96.0.3:80"


def _edge(agent: Agent, authority: CertificateAuthority) -> None:
    """The Envoy of an ingress gateway, with a certificate that is not loaded yet."""
    pem = authority.issue("web.example.com").partition("-----BEGIN PRIVATE")[0]
    encoded = base64.b64encode(pem.encode()).decode()
    references = [{"name": "a.crt"}, {"name": "b.crt"}]
    context = {"common_tls_context": {"tls_certificate_sds_secret_configs": references}}
    chain = {
        "name": "443|web",
        "filter_chain_match": {
            "server_names": ["web.example.com"],
            "source_prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}],
        },
        "transport_socket": {"typed_config": context},
    }
    certificate = {"certificate_chain": {"inline_bytes": encoded}}
    listener = {"name": "ingress|443", "filter_chains": [chain]}
    agent.answers["/v1/gateways"] = GATEWAYS
    agent.answers[_path("config_dump")] = {
        "configs": [
            _section("Listeners", dynamic_listeners=[{"active_state": {"listener": listener}}]),
            _section(
                "Secrets",
                dynamic_active_secrets=[
                    {"name": "a.crt", "secret": {"tls_certificate": certificate}},
                    {"name": "c.ca", "secret": {"validation_context": {"trusted_ca": "?"}}},
                ],
                dynamic_warming_secrets=[{"name": "b.crt", "secret": {"name": "b.crt"}}],
            ),
        ]
    }


def test_secret_table_has_hosts_dates_and_chains(ztctl: Ztctl, agent: Agent) -> None:
    _edge(agent, CertificateAuthority())
    rows = {row[0]: row[1:] for row in _rows(ztctl, agent, "secret", POD)}
    kind, state, host, _, _, until, chain = rows["a.crt"]
    assert (kind, state, host, chain) == ("certificate", "ACTIVE", "web.example.com", "443|web")
    assert until.endswith("Z")
    assert rows["b.crt"] == ["certificate", "WARMING", "-", "-", "-", "-", "443|web"]
    assert rows["c.ca"][:2] == ["authorities", "ACTIVE"]


def test_listener_table_has_server_names_and_networks(ztctl: Ztctl, agent: Agent) -> None:
    _edge(agent, CertificateAuthority())
    (row,) = _rows(ztctl, agent, "listener", POD)
    assert "web.example.com,from 10.0.0.0/8" in " ".join(row)


def test_route_table_has_matches_and_weighted_targets(ztctl: Ztctl, waypoint: Agent) -> None:
    rows = _rows(ztctl, waypoint, "route", POD)
    split = next(row for row in rows if "=/a" in row)
    assert split[0] == "default/web|80"
    assert "x-user=ann" in split
    assert split[-4:] == ["default/web|80", "9,", "default/other|80", "1"]


def test_cluster_table(ztctl: Ztctl, waypoint: Agent) -> None:
    rows = _rows(ztctl, waypoint, "cluster", "waypoint-0")
    types = {row[0]: row[1] for row in rows}
    assert types["default/web|80"] == types["default/other|80"] == "EDS"


def test_endpoint_table(ztctl: Ztctl, waypoint: Agent) -> None:
    address = {"socket_address": {"address": "fd00::1", "port_value": 80}}
    waypoint.answers[_path("clusters")] = {
        "cluster_statuses": [
            {
                "name": "default/web|80",
                "host_statuses": [
                    {
                        "address": address,
                        "health_status": {
                            "eds_health_status": "HEALTHY",
                            "failed_outlier_check": True,
                        },
                        "weight": 1,
                        "stats": [
                            {"name": "rq_total", "value": "7"},
                            {"name": "rq_error", "value": "2"},
                        ],
                    }
                ],
            }
        ]
    }
    assert _rows(ztctl, waypoint, "endpoint", "waypoint-0") == [
        ["[fd00::1]:80", "failed_outlier_check", "default/web|80", "1", "7", "2"]
    ]


def test_json_is_envoys_own_data(ztctl: Ztctl, waypoint: Agent) -> None:
    done = ztctl(
        "--run-dir", str(waypoint.run_dir), "proxy-config", "cluster", "waypoint-0", "-o", "json"
    )
    names = {each["name"] for each in json.loads(done.output)}
    assert names >= {"default/web|80", "default/other|80"}


def test_gateway_name_selects_its_first_pod(ztctl: Ztctl, waypoint: Agent) -> None:
    assert _rows(ztctl, waypoint, "cluster", "waypoint")
    assert _rows(ztctl, waypoint, "cluster", "waypoint", "-n", "default")


def test_unknown_pod_is_an_error_that_names_the_pods(ztctl: Ztctl, waypoint: Agent) -> None:
    done = ztctl("--run-dir", str(waypoint.run_dir), "proxy-config", "cluster", "web", "-n", "shop")
    assert done.exit_code == 1
    assert "no gateway pod or Gateway shop/web" in done.output
    assert "hint: the gateway pods are: default/waypoint-0, default/waypoint-1" in done.output


def test_status_shows_rejections_and_problems(ztctl: Ztctl, waypoint: Agent) -> None:
    row = {
        "type": "Cluster",
        "name": "c",
        "version": "2",
        "accepted": "1",
        "state": "REJECTED",
        "message": "bad",
    }
    waypoint.answers[_path("xds")] = {
        "resources": [row],
        "connected": False,
        "error": "boom",
        "problems": ["HTTPRoute shop/web: spec: not honoured"],
    }
    done = ztctl("--run-dir", str(waypoint.run_dir), "proxy-config", "status", "waypoint-0")
    assert done.exit_code == 0
    for text in ("REJECTED", "bad", "not connected", "not compiled: boom", "not honoured"):
        assert text in done.output


def test_log_level_is_changed_by_one_request(ztctl: Ztctl, waypoint: Agent) -> None:
    path = "/v1/gateway?pod=default%2Fwaypoint-0&log=rbac%3Ddebug"
    waypoint.answers[path] = {"loggers": {"rbac": "debug", "admin": "info"}}
    rows = _rows(ztctl, waypoint, "log", "waypoint-0", "--level", "rbac=debug")
    assert rows == [["admin", "info"], ["rbac", "debug"]]
    assert waypoint.patched == [{}]


@pytest.mark.parametrize("level", ["loud", "rbac=", "rbac=debug&x=1", "=debug", "a b=info"])
def test_invalid_log_level_is_a_usage_error(ztctl: Ztctl, waypoint: Agent, level: str) -> None:
    done = ztctl(
        "--run-dir", str(waypoint.run_dir), "proxy-config", "log", "waypoint-0", "--level", level
    )
    assert done.exit_code == 2
    assert waypoint.patched == []
