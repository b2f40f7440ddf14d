# SPDX-License-Identifier: Apache-2.0
"""An ingress gateway at 200 requests/s while its configuration, certificates and pods change.

Clients never send a request twice: a request that must be repeated counts as failed. Those on kept-
alive connections obey `connection: close` and GOAWAY. docs/concepts/gateway-lifecycle.md publishes
the measured losses; `-s` prints those of this run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.lab.gateway import storefront as front
from tests.lab.gateway.storefront import Storefront
from tests.lab.waypoint.shop import SHOP, VERSIONS
from tests.lab.waypoint.traffic import Result
from tests.support.waiting import wait_until
from ztunnel.lab.runtime import cgroups, sandbox

RATES = {"HTTP/1.1": 70, "HTTP/1.1, new connections": 60, "HTTP/2": 70}  # per second
MIN_REQUESTS = 100  # of each load
EFFECTIVE_S = 1.0  # until a change applies
CERTIFICATE_EFFECTIVE_S = 5.0  # until new connections get a new certificate


@contextmanager
def all_loads(made: Storefront) -> Iterator[dict[str, Result]]:
    """HTTPS requests, 200/s together: on kept-alive connections, on new ones, and by HTTP/2."""
    with ExitStack() as stack:
        rates = iter(RATES.values())
        loads = [
            made.load(rate=next(rates)),
            made.load("--new", rate=next(rates)),
            made.h2_load(next(rates)),
        ]
        yield dict(zip(RATES, map(stack.enter_context, loads), strict=True))


def report(name: str, result: Result) -> None:
    print(
        f"\n{name}: {len(result.failed)} of {len(result.requests)} failed, over "
        f"{result.outage_s():.2f} s; {result.retried} sent again, {result.drained} connections "
        f"drained, slowest {result.slowest_s():.2f} s"
    )


def assert_none_failed(name: str, results: dict[str, Result]) -> None:
    for load, result in results.items():
        report(f"{name}, {load}", result)
    assert [request for result in results.values() for request in result.failed] == []
    assert [result.retried for result in results.values()] == [0, 0, 0]
    assert all(len(result.requests) > MIN_REQUESTS for result in results.values())


def scale(made: Storefront, replicas: int) -> None:
    deployment = made.lab.get("Deployment", front.DEPLOYMENT, SHOP)
    deployment["spec"]["replicas"] = replicas
    assert made.lab.apply(deployment) == []
    assert len(made.pods()) == replicas


def test_listener_and_route_changes_fail_no_request(storefront: Storefront) -> None:
    lab = storefront.lab
    extra = front.https("extra", "extra.example")
    port = {"name": "more", "port": 8080, "protocol": "HTTP"}
    assert lab.apply(storefront.certificate("extra-tls", "extra.example")) == []
    steady = []  # from a second after a change of the route until the next one
    with all_loads(storefront) as results:
        for number in range(10):
            began = time.time()
            version = ("v2", "v1")[number % 2]
            listeners = ([extra], [extra, port], [port], [])[number % 4]
            assert lab.apply(front.route(version), *front.gateway(*listeners), wait=False) == []
            applied_at = time.time()
            time.sleep(max(0.0, began + 1.5 * EFFECTIVE_S - applied_at))
            steady.append((version, applied_at + EFFECTIVE_S, time.time()))
    lab.apply(*front.gateway(), front.route("v1"))
    assert_none_failed("listener and route changes", results)
    for version, begin, end in steady:
        for result in results.values():
            assert result.versions(begin, end) <= {version}


def test_changes_of_a_listener_drain_its_connections_without_a_loss(
    storefront: Storefront,
) -> None:
    """A second certificate changes the filter chain: its connections end, on request only."""
    assert storefront.lab.apply(storefront.certificate("other-tls", "other.example")) == []
    with all_loads(storefront) as results:
        for number in range(6):
            began = time.time()
            objects = front.gateway()
            if number % 2 == 0:
                tls = objects[1]["spec"]["listeners"][1]["tls"]
                tls["certificateRefs"].append({"name": "other-tls"})
            assert storefront.lab.apply(*objects, wait=False) == []
            time.sleep(max(0.0, began + 1 - time.time()))
    assert_none_failed("changes of the HTTPS listener", results)
    assert results["HTTP/1.1"].drained > 0
    assert results["HTTP/2"].drained > 0


def test_renewed_certificate_is_in_use_within_seconds(storefront: Storefront) -> None:
    with all_loads(storefront) as results:
        for _ in range(3):
            renewed = storefront.certificate()
            assert storefront.lab.apply(renewed, wait=False) == []
            changed_at = time.monotonic()
            wait_until(
                lambda: storefront.served_certificate() == renewed["stringData"]["tls.crt"].strip(),  # noqa: B023
                "the new certificate",
            )
            in_use_s = time.monotonic() - changed_at
            print(f"\nrenewed certificate in use after {in_use_s:.2f} s")
            assert in_use_s < CERTIFICATE_EFFECTIVE_S
    assert_none_failed("certificate rotation", results)


def test_invalid_certificate_leaves_the_previous_one(storefront: Storefront) -> None:
    before = storefront.served_certificate()
    broken = storefront.certificate()
    broken["stringData"]["tls.key"] = storefront.certificate()["stringData"]["tls.key"]
    with all_loads(storefront) as results:
        problems = storefront.lab.apply(broken, wait=False)
        assert any("does not belong" in each and "stays in use" in each for each in problems)
        time.sleep(2)
        assert storefront.served_certificate() == before
    assert_none_failed("invalid certificate", results)
    assert storefront.lab.apply(storefront.certificate()) == []


def test_scaling_fails_no_request(storefront: Storefront) -> None:
    with all_loads(storefront) as results:
        scale(storefront, 3)
        time.sleep(1)
        scale(storefront, 1)
    assert_none_failed("scale 1, 3, 1", results)


def test_rolling_update_fails_no_request(storefront: Storefront) -> None:
    (before,) = storefront.pods()
    with all_loads(storefront) as results:
        changed = front.gateway(annotations={"updated": str(time.time())})
        assert storefront.lab.apply(*changed) == []
    (after,) = storefront.pods()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert_none_failed("rolling update", results)


@pytest.mark.parametrize("component", ["gateway", "agent"])
def test_loss_of_the_control_plane_fails_no_request(storefront: Storefront, component: str) -> None:
    (pod,) = storefront.pods()
    with all_loads(storefront) as results:
        storefront.lab.kill(pod["spec"]["nodeName"], component)
        time.sleep(2)
        storefront.lab.start(pod["spec"]["nodeName"], component)
        time.sleep(1)
    assert_none_failed(f"kill -9 of the {component}", results)
    storefront.lab.apply(front.route("v2"))  # and changes apply again
    url = f"https://{front.HOST}/"
    wait_until(lambda: storefront.get(url).version == "v2", "changes apply again")
    storefront.lab.apply(front.route("v1"))


def test_loss_of_envoy_is_bounded(storefront: Storefront) -> None:
    (pod,) = storefront.pods()
    cgroup = sandbox.describe(storefront.lab.names, pod).cgroup(storefront.lab.names)
    with storefront.load("--new", rate=200) as result:
        for pid in cgroups.pids(cgroup / pod["spec"]["containers"][0]["name"]):
            os.kill(pid, signal.SIGKILL)
        killed_at = time.time()
        assert storefront.lab.apply() == []  # the lab's kubelet restarts it
        recovered_s = time.time() - killed_at
    report(f"kill -9 of Envoy, ready again after {recovered_s:.2f} s", result)
    assert result.outage_s() < recovered_s + 1


def test_loss_of_the_proxy_is_bounded(storefront: Storefront) -> None:
    (pod,) = storefront.pods()
    node = pod["spec"]["nodeName"]
    other = next(version for version, where in VERSIONS.items() if where != node)
    assert storefront.lab.apply(front.route(other)) == []
    url = f"https://{front.HOST}/"
    wait_until(lambda: storefront.get(url).version == other, "the route")
    with storefront.load("--new", rate=200) as result:
        killed_at = time.time()
        storefront.lab.restart(node, "proxy", kill=True)
        recovered_s = time.time() - killed_at
        time.sleep(1)
    report(f"kill -9 of the gateway's proxy, ready again after {recovered_s:.2f} s", result)
    assert result.outage_s() < recovered_s + 1.5
    storefront.lab.apply(front.route("v1"))
