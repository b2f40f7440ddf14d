# SPDX-License-Identifier: Apache-2.0
"""The benchmark of gateways: copied configurations, nginx's configuration and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.comparison.results import OURS, BenchResults
from bench.gateway import envoy_config, nginx_proxy, objects, report
from bench.gateway.cases import CONTENDERS, ENVOY, NGINX, PATHS
from bench.l7 import cases
from bench.l7.envoy_config import DumpError

CERTIFICATE, KEY = Path("/c.pem"), Path("/k.pem")
CLUSTER = "meshed/server-node1|80"


def listener(port: int, **chain: Any) -> dict[str, Any]:
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {"@type": "x", "rds": {"route_config_name": "routes"}},
    }
    found = {
        "@type": "x",
        "name": f"ingress|{port}",
        "address": {"socket_address": {"address": "::", "port_value": port}},
        "filter_chains": [{"filters": [manager], **chain}],
    }
    return {"active_state": {"listener": found}}


def dump(*ports: int) -> dict[str, Any]:
    """A configuration dump of a gateway."""
    sds = {"common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "id"}]}}
    tls = {"transport_socket": {"name": "tls", "typed_config": sds}}
    kinds: dict[str, Any] = {
        "ListenersConfigDump": {
            "dynamic_listeners": [
                listener(port, **(tls if port == 443 else {})) for port in (*ports, 15021)
            ]
        },
        "RoutesConfigDump": {
            "dynamic_route_configs": [
                {"route_config": {"@type": "x", "name": "routes", "virtual_hosts": []}}
            ]
        },
        "ClustersConfigDump": {
            "dynamic_active_clusters": [
                {
                    "cluster": {
                        "@type": "x",
                        "name": CLUSTER,
                        "type": "EDS",
                        "eds_cluster_config": {},
                    }
                }
            ]
        },
    }
    return {"configs": [{"@type": f"envoy.admin.v3.{kind}", **kinds[kind]} for kind in kinds]}


def test_listeners_are_copied_with_routes_and_a_static_certificate() -> None:
    routes = {CLUSTER: ("10.0.0.1", 8080)}
    config = envoy_config.same_filters(dump(80, 443), routes, CERTIFICATE, KEY)
    plain, encrypted = config["static_resources"]["listeners"]
    manager = plain["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager == {"@type": "x", "route_config": {"name": "routes", "virtual_hosts": []}}
    common = encrypted["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    assert common["tls_certificates"][0]["certificate_chain"] == {"filename": "/c.pem"}
    assert "tls_certificate_sds_secret_configs" not in common
    (cluster,) = config["static_resources"]["clusters"]
    assert (cluster["name"], cluster["type"]) == (CLUSTER, "STATIC")
    assert envoy_config.cluster_names(dump(80, 443)) == [CLUSTER]


def test_gateway_without_listeners_is_an_error() -> None:
    with pytest.raises(DumpError, match="1 listeners"):
        envoy_config.same_filters(dump(80), {}, CERTIFICATE, KEY)


def test_routing_only_serves_each_path_over_both_protocols() -> None:
    config = envoy_config.routing_only({"node1": ("10.0.0.1", 8080)}, CERTIFICATE, KEY)
    resources = config["static_resources"]
    ports = [each["address"]["socket_address"]["port_value"] for each in resources["listeners"]]
    assert ports == [80, 443]
    assert [each["name"] for each in resources["clusters"]] == ["node1"]


def test_nginx_has_a_location_and_an_upstream_for_each_path(tmp_path: Path) -> None:
    routes = {"node1": ("10.0.0.1", 8080), "node2": ("10.0.0.2", 8080)}
    argv = nginx_proxy.argv(tmp_path / "nginx", routes, CERTIFICATE, KEY)
    text = Path(argv[-1]).read_text()
    for name, (ip, port) in routes.items():
        assert f"location /{name} {{" in text
        assert f"server {ip}:{port};" in text
    assert "listen 0.0.0.0:443 ssl" in text


def test_gateway_and_the_others_have_equal_services(tmp_path: Path) -> None:
    secret = {"kind": "Secret", "metadata": {"name": objects.CERTIFICATE}}
    made = objects.all_objects(tmp_path, ("proxy",), secret)
    (balancer,) = [o for o in made if o["metadata"]["name"] == "proxy" and o["kind"] == "Service"]
    assert balancer["spec"]["externalTrafficPolicy"] == "Local"
    options = next(o for o in made if o["kind"] == "ConfigMap")["data"]
    assert "Local" in options["service"]


def test_report_has_the_ratio_to_each_base() -> None:
    results = BenchResults()
    path = PATHS[0].name
    for name, rate in ((OURS, 50.0), (ENVOY, 100.0), (NGINX, 200.0)):
        results.add(cases.RATE, path, name, rate)
    text = report.tables(results)
    ours = next(line for line in text.splitlines() if line.startswith(f"| {OURS}"))
    assert "0.500" in ours
    assert "0.250" in ours
    assert set(CONTENDERS) > {OURS, ENVOY, NGINX}
