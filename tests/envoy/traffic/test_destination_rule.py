# SPDX-License-Identifier: Apache-2.0
"""DestinationRules: which rule applies, and how a real Envoy behaves with its settings."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.envoy.traffic.worlds import destination_rule, fields_of, world_with_versions
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import Answer, dial, request
from tests.support.waypoint.envoy import running_envoy
from tests.support.waypoint.world import World

WEB = "web.default.svc.cluster.local"


def test_circuit_breakers_are_unlimited_by_default_as_in_istio() -> None:
    world = World()
    world.service("web")
    (limits,) = fields_of(world).fields["circuit_breakers"]["thresholds"]
    assert limits["max_connections"] == limits["max_retries"] == 2**32 - 1
    assert fields_of(world).fields["lb_policy"] == "LEAST_REQUEST"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([("web", "default", None)], "ROUND_ROBIN"),
        ([(WEB, "istio-system", None)], "ROUND_ROBIN"),
        ([("*.default.svc.cluster.local", "default", None)], "ROUND_ROBIN"),
        ([("web", "other", None)], "LEAST_REQUEST"),  # its own web
        ([(WEB, "other", None)], "LEAST_REQUEST"),  # neither the waypoint's nor the service's
        ([(WEB, "istio-system", ["."])], "LEAST_REQUEST"),
        ([(WEB, "istio-system", ["default"])], "ROUND_ROBIN"),
    ],
)
def test_rule_applies_by_host_namespace_and_export(rules: list[Any], expected: str) -> None:
    world = World()
    world.service("web")
    for host, namespace, export in rules:
        policy = {"loadBalancer": {"simple": "ROUND_ROBIN"}}
        extra = {} if export is None else {"exportTo": export}
        world.add(destination_rule(policy, host=host, namespace=namespace, **extra))
    assert fields_of(world).fields["lb_policy"] == expected


def test_exact_host_wins_over_wildcard_and_oldest_over_newer() -> None:
    world = World()
    world.service("web")
    for name, host, simple, created in (
        ("a", "*", "RANDOM", "2020"),
        ("b", "web", "ROUND_ROBIN", "2021"),
        ("c", "web", "LEAST_REQUEST", "2022"),
    ):
        policy = {"loadBalancer": {"simple": simple}}
        world.add(destination_rule(policy, host=host, name=name, created=created))
    found = fields_of(world)
    assert found.fields["lb_policy"] == "ROUND_ROBIN"
    assert [(p.name, p.reason) for p in found.problems] == [("c", "Conflicted")]


def test_idle_connections_of_tcp_are_closed(tmp_path: Path) -> None:
    with Backend("v1") as backend:
        world, vip = world_with_versions({"v1": backend}, protocol="tcp")
        world.add(destination_rule({"connectionPool": {"tcp": {"idleTimeout": "0.3s"}}}))
        config = world.compile()
        assert config.problems == ()
        with running_envoy(config, tmp_path) as envoy, dial(envoy.port, vip) as sock:
            assert sock.recv(1) == b""  # the default is an hour


def test_settings_of_a_port_replace_and_those_of_a_subset_override() -> None:
    world = World()
    world.service("web", {80: "http", 81: "http"})
    pool = {"tcp": {"connectTimeout": "3s"}}
    policy = {
        "connectionPool": pool,
        "loadBalancer": {"simple": "RANDOM"},
        "portLevelSettings": [{"port": {"number": 81}, "loadBalancer": {"simple": "ROUND_ROBIN"}}],
    }
    subset = {
        "name": "v1",
        "labels": {"version": "v1"},
        "trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": "5s"}}},
    }
    world.add(destination_rule(policy, subsets=[subset]))
    found = fields_of(world).fields
    assert (found["connect_timeout"], found["lb_policy"]) == ("3s", "RANDOM")
    found = fields_of(world, port=81).fields
    assert found["lb_policy"] == "ROUND_ROBIN"
    assert "connect_timeout" not in found
    found = fields_of(world, subset="v1").fields
    assert (found["connect_timeout"], found["lb_policy"]) == ("5s", "RANDOM")


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"tunnel": {"targetHost": "a"}}, "spec.trafficPolicy.tunnel"),
        ({"tls": {"mode": "ISTIO_MUTUAL"}}, "spec.trafficPolicy.tls.mode"),
        ({"loadBalancer": {"simple": "PASSTHROUGH"}}, "spec.trafficPolicy.loadBalancer.simple"),
        (
            {"loadBalancer": {"localityLbSetting": {"failoverPriority": ["a"]}}},
            "spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority",
        ),
        (
            {"connectionPool": {"tcp": {"idleTimeout": "3s"}}},
            "spec.trafficPolicy.connectionPool.tcp.idleTimeout",
        ),
    ],
)
def test_settings_without_effect_are_reported(policy: dict[str, Any], field: str) -> None:
    world = World()
    world.service("web")
    world.add(destination_rule(policy))
    found = fields_of(world)
    assert not found.rejected
    assert [problem.field for problem in found.problems] == [field]


@pytest.mark.parametrize(
    "policy",
    [
        {"tls": {"mode": "MUTUAL"}},
        {"tls": {"mode": "SIMPLE", "credentialName": "a"}},
        {"tls": {"mode": "SIMPLE", "caCertificates": "/dev/zero"}},
        {"tls": {"mode": "NO_SUCH"}},
        {"loadBalancer": {"simple": "NO_SUCH"}},
        {"loadBalancer": {"consistentHash": {}}},
        {"connectionPool": {"tcp": {"maxConnections": "many"}}},
        {"outlierDetection": {"interval": "soon"}},
        {"unknown": {}},
        {"portLevelSettings": [{"loadBalancer": {}}]},
    ],
)
def test_invalid_settings_reject_requests_and_are_reported(policy: dict[str, Any]) -> None:
    world = World()
    world.service("web")
    world.add(destination_rule(policy))
    found = fields_of(world)
    assert found.rejected
    assert any(problem.severity == "error" for problem in found.problems)


def test_invalid_rule_of_another_service_affects_nothing() -> None:
    world = World()
    world.service("web")
    world.add(destination_rule({"unknown": 1}, host="other"))
    assert not fields_of(world).rejected


def test_failing_endpoint_is_ejected(tmp_path: Path) -> None:
    def failing(_: dict[str, Any]) -> tuple[int, dict[str, str]]:
        return 500, {}

    with Backend("good") as good, Backend("bad", failing) as bad:
        world, vip = world_with_versions({"v1": good, "v2": bad})
        detection = {
            "consecutive5xxErrors": 2,
            "interval": "0.1s",
            "baseEjectionTime": "60s",
            "maxEjectionPercent": 50,
        }
        world.add(destination_rule({"outlierDetection": detection}))
        with running_envoy(world.compile(), tmp_path) as envoy:
            for _ in range(20):
                request(envoy.port, vip)
            assert envoy.stat("cluster.default/web|80.outlier_detection.ejections_active") == 1
            seen = {request(envoy.port, vip).status for _ in range(20)}
            assert seen == {200}


def test_requests_beyond_the_connection_pool_overflow(tmp_path: Path) -> None:
    def slow(_: dict[str, Any]) -> tuple[int, dict[str, str]]:
        time.sleep(0.5)
        return 200, {}

    with Backend("slow", slow) as backend:
        world, vip = world_with_versions({"v1": backend})
        pool = {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}
        world.add(destination_rule({"connectionPool": pool}))
        with running_envoy(world.compile(), tmp_path) as envoy:
            answers: list[Answer] = []
            threads = [
                threading.Thread(target=lambda: answers.append(request(envoy.port, vip)))
                for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            statuses = Counter(answer.status for answer in answers)
            assert statuses[200] in (1, 2)  # one on the connection, perhaps one pending
            assert statuses[503] == 6 - statuses[200]
            stat = "cluster.default/web|80.upstream_rq_pending_overflow"
            assert envoy.stat(stat) == statuses[503]


@pytest.mark.parametrize(
    "how",
    [
        {"httpHeaderName": "x-user"},
        {"httpQueryParameterName": "user", "maglev": {"tableSize": 5003}},
        {"httpHeaderName": "x-user", "ringHash": {"minimumRingSize": 512}},
    ],
)
def test_consistent_hash_selects_one_endpoint_per_value(
    how: dict[str, Any], tmp_path: Path
) -> None:
    with Backend("a") as a, Backend("b") as b, Backend("c") as c:
        world, vip = world_with_versions({"v1": a, "v2": b, "v3": c})
        world.add(destination_rule({"loadBalancer": {"consistentHash": how}}))
        with running_envoy(world.compile(), tmp_path) as envoy:
            chosen = {}
            for user in map(str, range(12)):
                seen = {
                    request(
                        envoy.port, vip, path=f"/?user={user}", headers={"x-user": user}
                    ).backend
                    for _ in range(4)
                }
                assert len(seen) == 1
                chosen[user] = seen.pop()
            assert len(set(chosen.values())) > 1


def test_hash_by_cookie_is_set_by_envoy(tmp_path: Path) -> None:
    how = {"httpCookie": {"name": "user", "ttl": "60s", "path": "/"}}
    with Backend("a") as a, Backend("b") as b:
        world, vip = world_with_versions({"v1": a, "v2": b})
        world.add(destination_rule({"loadBalancer": {"consistentHash": how}}))
        with running_envoy(world.compile(), tmp_path) as envoy:
            first = request(envoy.port, vip)
            cookie = first.headers["set-cookie"].partition(";")[0]
            seen = {request(envoy.port, vip, headers={"cookie": cookie}).backend for _ in range(8)}
            assert seen == {first.backend}


def test_locality_failover_prefers_near_endpoints_and_falls_back(tmp_path: Path) -> None:
    near = {"topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": "z1"}
    far = {"topology.kubernetes.io/region": "r2", "topology.kubernetes.io/zone": "z9"}
    with Backend("near") as a, Backend("far") as b:
        world, vip = world_with_versions({"v1": a, "v2": b}, {"v1": near, "v2": far})
        world.settings = type(world.settings)(locality="r1/z1")
        world.add(destination_rule({"outlierDetection": {"consecutive5xxErrors": 1}}))
        with running_envoy(world.compile(), tmp_path) as envoy:
            assert {request(envoy.port, vip).backend for _ in range(8)} == {"near"}


def test_locality_distribution_sends_shares(tmp_path: Path) -> None:
    one = {"topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": "z1"}
    two = {"topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": "z2"}
    with Backend("one") as a, Backend("two") as b:
        world, vip = world_with_versions({"v1": a, "v2": b}, {"v1": one, "v2": two})
        world.settings = type(world.settings)(locality="r1/z1")
        distribute = [{"from": "r1/z1/*", "to": {"r1/z1/*": 20, "r1/z2/*": 80}}]
        policy = {"loadBalancer": {"localityLbSetting": {"distribute": distribute}}}
        world.add(destination_rule(policy))
        with running_envoy(world.compile(), tmp_path) as envoy:
            seen = Counter(request(envoy.port, vip).backend for _ in range(100))
            assert 60 <= seen["two"] <= 95
