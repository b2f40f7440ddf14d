# SPDX-License-Identifier: Apache-2.0
"""The waypoint benchmark: copied configurations and targets."""

from __future__ import annotations

from typing import Any

import pytest

from bench.comparison.results import OURS, BenchResults
from bench.l7 import cases, envoy_config, report, targets
from ztunnel.l7.names import PeerState

HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.X"
ROUTE, CLUSTER = "shop/app|80", "shop/app|80"


def dump() -> dict[str, Any]:
    """A configuration dump of a waypoint with one service."""
    chain = {
        "filters": [
            {"name": "envoy.filters.network.set_filter_state", "typed_config": {"from": "TLVs"}},
            {
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": HCM,
                    "rds": {"route_config_name": ROUTE},
                    "http_filters": [{"name": "policy"}],
                },
            },
        ]
    }
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": CLUSTER}}]
    endpoint = {"endpoint": {"address": {}}, "metadata": {"filter_metadata": {"istio": {}}}}
    kinds: dict[str, Any] = {
        "ListenersConfigDump": {
            "dynamic_listeners": [{"active_state": {"listener": {"filter_chains": [chain]}}}]
        },
        "RoutesConfigDump": {
            "dynamic_route_configs": [
                {
                    "route_config": {
                        "@type": "x",
                        "name": ROUTE,
                        "virtual_hosts": [{"routes": routes}],
                    }
                }
            ]
        },
        "ClustersConfigDump": {
            "dynamic_active_clusters": [
                {"cluster": {"name": CLUSTER, "type": "EDS", "eds_cluster_config": {}}}
            ]
        },
        "EndpointsConfigDump": {
            "dynamic_endpoint_configs": [
                {
                    "endpoint_config": {
                        "cluster_name": CLUSTER,
                        "endpoints": [{"lb_endpoints": [endpoint]}],
                    }
                }
            ]
        },
    }
    return {"configs": [{"@type": f"a.{kind}", **part} for kind, part in kinds.items()]}


def test_copied_proxy_has_the_filters_of_the_waypoint_and_one_server() -> None:
    peer = {PeerState.IDENTITY: "spiffe://a/ns/b/sa/c"}
    made = envoy_config.same_filters(dump(), {9100: (ROUTE, ("10.0.0.1", 80))}, peer)
    (listener,) = made["static_resources"]["listeners"]
    state, hcm = listener["filter_chains"][0]["filters"]
    assert state["typed_config"]["on_new_connection"][0]["object_key"] == "ztunnel.peer.identity"
    assert hcm["typed_config"]["http_filters"] == [{"name": "policy"}]
    assert "rds" not in hcm["typed_config"]
    (cluster,) = made["static_resources"]["clusters"]
    (host,) = hcm["typed_config"]["route_config"]["virtual_hosts"]
    assert host["routes"][0]["route"]["cluster"] == cluster["name"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    assert locality["lb_endpoints"] == [
        {
            "endpoint": {"address": envoy_config.socket_address("10.0.0.1", 80)},
            "metadata": {"filter_metadata": {"istio": {}}},
        }
    ]


def test_service_without_a_chain_is_an_error() -> None:
    with pytest.raises(envoy_config.DumpError, match="other"):
        envoy_config.copied_filters(dump(), "other", "x", {})


def results(ours: float, envoy: float, l4: float, direct: float) -> BenchResults:
    made, path, p50 = BenchResults(), cases.SAME.name, cases.P50[cases.ONE]
    made.add(cases.RATE, path, OURS, 850)
    made.add(cases.RATE, path, cases.ENVOY_FILTERS, 1000)
    by_name = {OURS: ours, cases.ENVOY_FILTERS: envoy, cases.L4: l4, cases.NO_MESH: direct}
    for name, value in by_name.items():
        made.add(p50, path, name, value)
    return made


def test_targets_compare_the_rate_and_what_the_mesh_adds() -> None:
    rate, added, *rest = targets.evaluate(results(ours=350, envoy=200, l4=150, direct=50))
    assert (rate.measured, rate.met) == (0.85, True)
    assert (added.measured, added.met) == (1.5, True)
    assert {target.met for target in rest} == {None}
    assert targets.evaluate(results(360, 200, 150, 50))[1].met is False


def test_table_has_a_line_for_each_measured_contender() -> None:
    text = report.tables(results(350, 200, 150, 50))
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == [
        OURS,
        cases.ENVOY_FILTERS,
    ]
    assert "0.850" in text
