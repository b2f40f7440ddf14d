# SPDX-License-Identifier: Apache-2.0
"""Waypoints at 200 requests/s while they are attached, scaled, replaced and killed.

docs/concepts/waypoint-lifecycle.md publishes the measured losses; `-s` prints those of this run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.helpers.harness import proxy_log
from tests.lab.waypoint import shop
from tests.lab.waypoint.traffic import Result, Shop
from tests.support.waiting import wait_until
from ztunnel.lab.runtime import cgroups, sandbox

EFFECTIVE_S = 1.0  # until a change applies to new connections
LABEL = "istio.io/use-waypoint"


@pytest.fixture
def attached(waypoint_shop: Shop) -> Iterator[Shop]:
    """The shop with a route of all requests to v2, which only the waypoint knows."""
    to(waypoint_shop, "v2")
    wait_until(lambda: waypoint_shop.get("buyer-far").version == "v2", "the route applies")
    yield waypoint_shop
    attach(waypoint_shop, shop.WAYPOINT)


def to(made: Shop, version: str) -> None:
    """Route all requests to a version."""
    assert made.lab.apply(shop.route({"backendRefs": [shop.backend(version)]}), wait=False) == []


def attach(made: Shop, waypoint: str | None) -> None:
    """Put a waypoint in front of my-app, or none."""
    made.lab.label("Service", "my-app", {LABEL: waypoint}, shop.SHOP)


def report(name: str, result: Result) -> None:
    count, failed = len(result.requests), len(result.failed)
    print(
        f"\n{name}: {failed} of {count} requests failed, over {result.outage_s():.2f} s,", end=" "
    )
    print(f"the slowest other took {result.slowest_s():.2f} s, {result.retried} were sent again")


@contextmanager
def both_loads(made: Shop, caller: str) -> Iterator[list[Result]]:
    """100 requests/s on kept-alive connections, and 100 on a new connection each."""
    with made.load(caller, rate=100) as kept, made.load(caller, "--new", rate=100) as new:
        yield [kept, new]


def assert_none_failed(name: str, results: list[Result]) -> None:
    for result, mode in zip(results, ("kept-alive", "new connections"), strict=True):
        report(f"{name}, {mode}", result)
    assert [request for result in results for request in result.failed] == []


def envoy_pids(made: Shop) -> list[int]:
    pod = made.waypoint_pod()
    cgroup = sandbox.describe(made.lab.names, pod).cgroup(made.lab.names)
    return cgroups.pids(cgroup / pod["spec"]["containers"][0]["name"])


def scale(made: Shop, replicas: int) -> None:
    deployment = made.lab.get("Deployment", shop.WAYPOINT, shop.SHOP)
    deployment["spec"]["replicas"] = replicas
    assert made.lab.apply(deployment) == []
    pods = [p for p in made.lab.pods(shop.SHOP) if is_waypoint(p)]
    assert len(pods) == replicas


def update(made: Shop) -> None:
    """Replace the pods of the waypoint by a rolling update."""
    gateway = made.lab.get("Gateway", shop.WAYPOINT, shop.SHOP)
    infrastructure = dict(gateway["spec"]["infrastructure"])
    infrastructure["annotations"] = {"updated": str(time.time())}
    spec = {**gateway["spec"], "infrastructure": infrastructure}
    assert made.lab.apply({**gateway, "spec": spec}) == []


def is_waypoint(pod: dict[str, Any]) -> bool:
    labels = pod["metadata"]["labels"]
    return bool(labels.get("gateway.networking.k8s.io/gateway-name") == shop.WAYPOINT)


def test_attach_and_detach_fail_no_request_and_apply_within_a_second(attached: Shop) -> None:
    with both_loads(attached, "buyer-far") as results:
        attach(attached, None)
        detached_at = time.time()
        time.sleep(EFFECTIVE_S + 1)
        ended_at = time.time()
        attach(attached, shop.WAYPOINT)
        attached_at = time.time()
        time.sleep(EFFECTIVE_S + 1)
    assert_none_failed("detach and attach", results)
    _, new = results  # the route of all requests to v2 is the waypoint's
    assert new.versions(detached_at + EFFECTIVE_S, ended_at) == {"v1", "v2"}
    assert new.versions(attached_at + EFFECTIVE_S) == {"v2"}


def test_route_changes_fail_no_request_and_apply_within_a_second(attached: Shop) -> None:
    steady = []  # from a second after a change until the next one
    with both_loads(attached, "buyer-near") as results:
        for version in ("v1", "v2", "v1", "v2"):
            to(attached, version)
            changed_at = time.time()
            time.sleep(EFFECTIVE_S + 0.5)
            steady.append((version, changed_at + EFFECTIVE_S, time.time()))
    assert_none_failed("route changes", results)
    for version, begin, end in steady:
        for result in results:
            assert result.versions(begin, end) == {version}


def test_scaling_fails_no_request(attached: Shop) -> None:
    with both_loads(attached, "buyer-far") as results:
        scale(attached, 3)
        time.sleep(1)
        scale(attached, 1)
    assert_none_failed("scale 1, 3, 1", results)


def test_rolling_update_fails_no_request(attached: Shop) -> None:
    before = attached.waypoint_pod()["metadata"]["uid"]
    with both_loads(attached, "buyer-far") as results:
        update(attached)
    assert attached.waypoint_pod()["metadata"]["uid"] != before
    assert_none_failed("rolling update", results)


def test_loss_of_the_control_plane_fails_no_request(attached: Shop) -> None:
    with both_loads(attached, "buyer-far") as results:
        for kind in ("gateway", "agent"):
            attached.lab.restart("node1", kind, kill=True)
            time.sleep(0.5)
    assert_none_failed("kill -9 of ztunnel gateway, then of the agent", results)
    to(attached, "v1")  # and both work again
    wait_until(lambda: attached.get("buyer-far").version == "v1", "changes apply again")


def test_loss_of_envoy_is_bounded(attached: Shop) -> None:
    with attached.load("buyer-far", "--new") as result:
        for pid in envoy_pids(attached):
            os.kill(pid, signal.SIGKILL)
        killed_at = time.time()
        assert attached.lab.apply() == []  # the lab's kubelet restarts it
        recovered_s = time.time() - killed_at
    report(f"kill -9 of Envoy, ready again after {recovered_s:.2f} s", result)
    assert result.versions(killed_at + recovered_s + 0.5) == {"v2"}
    assert result.outage_s() < recovered_s + 1


def test_loss_of_the_proxy_is_bounded(attached: Shop) -> None:
    with attached.load("buyer-far", "--new") as result:
        killed_at = time.time()
        attached.lab.restart("node1", "proxy", kill=True)
        recovered_s = time.time() - killed_at
        time.sleep(1)
    report(f"kill -9 of the waypoint's proxy, ready again after {recovered_s:.2f} s", result)
    assert result.versions(killed_at + recovered_s + 1) == {"v2"}
    assert result.outage_s() < recovered_s + 1.5


def test_missing_waypoint_refuses_with_the_reason(attached: Shop) -> None:
    attach(attached, "absent")
    wait_until(lambda: attached.get("buyer-far").status == 0, "connections are refused")
    wait_until(lambda: "waypoint shop/absent does not exist" in proxy_log(attached.lab, "node2"))


def test_waypoint_without_ready_pods_refuses_with_the_reason(attached: Shop) -> None:
    scale(attached, 0)
    try:
        wait_until(lambda: attached.get("buyer-far").status == 0, "connections are refused")
        wait_until(lambda: "no ready" in proxy_log(attached.lab, "node2"))
    finally:
        scale(attached, 1)
    wait_until(lambda: attached.get("buyer-far").version == "v2", "the waypoint is back")
