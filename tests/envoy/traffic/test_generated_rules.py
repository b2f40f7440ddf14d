# SPDX-License-Identifier: Apache-2.0
"""Envoy accepts the cluster of any DestinationRule: a generated rule cannot break a waypoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.envoy.traffic.worlds import destination_rule, fields_of
from tests.support.waypoint.envoy import validate
from tests.support.waypoint.world import World

_DURATIONS = st.sampled_from(["0s", "1s", "100ms", "1.5s", "1h", "720h", "999999h", "x", ""])
_COUNTS = st.sampled_from([0, 1, 5, 100, 2**31 - 1, 2**40, -1, "many"])
_TEXTS = st.sampled_from(["", "a", "x-user", ":path", "a b", "é", "\n", "a" * 300])


def _some(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_POOL = _some(
    {
        "tcp": _some(
            {
                "maxConnections": _COUNTS,
                "connectTimeout": _DURATIONS,
                "maxConnectionDuration": _DURATIONS,
                "tcpKeepalive": _some(
                    {"probes": _COUNTS, "time": _DURATIONS, "interval": _DURATIONS}
                ),
            }
        ),
        "http": _some(
            {
                "http1MaxPendingRequests": _COUNTS,
                "http2MaxRequests": _COUNTS,
                "maxRequestsPerConnection": _COUNTS,
                "maxRetries": _COUNTS,
                "idleTimeout": _DURATIONS,
                "h2UpgradePolicy": st.sampled_from(["DEFAULT", "UPGRADE", "DO_NOT_UPGRADE"]),
                "useClientProtocol": st.booleans(),
                "maxConcurrentStreams": _COUNTS,
            }
        ),
    }
)
_HASH = _some(
    {
        "httpHeaderName": _TEXTS,
        "httpCookie": _some({"name": _TEXTS, "path": _TEXTS, "ttl": _DURATIONS}),
        "useSourceIp": st.booleans(),
        "httpQueryParameterName": _TEXTS,
        "ringHash": _some({"minimumRingSize": _COUNTS}),
        "maglev": _some({"tableSize": st.sampled_from([2, 3, 4, 5003, 5_000_011, 2**40])}),
    }
)
_BALANCER = _some(
    {
        "simple": st.sampled_from(["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "PASSTHROUGH"]),
        "warmup": _some(
            {
                "duration": _DURATIONS,
                "minimumPercent": st.sampled_from([0, 10, 100, 101]),
                "aggression": st.sampled_from([0.5, 1, 2, "a"]),
            }
        ),
        "warmupDurationSecs": _DURATIONS,
        "localityLbSetting": _some(
            {
                "enabled": st.booleans(),
                "distribute": st.just([{"from": "r1/*", "to": {"r1/*": 30, "*": 70}}]),
                "failover": st.just([{"from": "r1", "to": "r2"}]),
            }
        ),
    }
) | _HASH.map(lambda how: {"consistentHash": how})
_OUTLIER = _some(
    {
        "consecutive5xxErrors": _COUNTS,
        "consecutiveGatewayErrors": _COUNTS,
        "interval": _DURATIONS,
        "baseEjectionTime": _DURATIONS,
        "maxEjectionPercent": _COUNTS,
        "minHealthPercent": _COUNTS,
        "splitExternalLocalOriginErrors": st.booleans(),
        "consecutiveLocalOriginFailures": _COUNTS,
    }
)
_TLS = _some(
    {
        "mode": st.sampled_from(["DISABLE", "SIMPLE", "ISTIO_MUTUAL", "MUTUAL"]),
        "sni": _TEXTS,
        "subjectAltNames": st.lists(_TEXTS, max_size=2),
        "insecureSkipVerify": st.booleans(),
        "caCertificates": st.sampled_from(["", "system", "/dev/zero"]),
    }
)
_POLICIES = _some(
    {
        "connectionPool": _POOL,
        "loadBalancer": _BALANCER,
        "outlierDetection": _OUTLIER,
        "tls": _TLS,
        "proxyProtocol": _some({"version": st.sampled_from(["V1", "V2", "V3"])}),
        "retryBudget": _some(
            {"percent": st.sampled_from([0, 50, 101]), "minRetryConcurrency": _COUNTS}
        ),
    }
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(st.lists(_POLICIES, min_size=40, max_size=40))
def test_envoy_accepts_the_cluster_of_any_rule(
    tmp_path_factory: pytest.TempPathFactory, policies: list[dict[str, Any]]
) -> None:
    world = World()
    world.settings = type(world.settings)(locality="r1/z1")
    for number, policy in enumerate(policies):
        world.service(f"web{number}", {80: ("http", "http2", "tcp")[number % 3]}, [1])
        world.add(destination_rule(policy, host=f"web{number}", name=f"r{number}"))
    directory: Path = tmp_path_factory.mktemp("envoy")
    validate(world.compile(), directory)


@given(_POLICIES)
def test_any_rule_is_honoured_or_reported(policy: dict[str, Any]) -> None:
    world = World()
    world.service("web")
    world.add(destination_rule(policy))
    found = fields_of(world)
    assert not found.rejected or any(p.severity == "error" for p in found.problems)
