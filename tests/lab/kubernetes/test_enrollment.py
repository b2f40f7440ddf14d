# SPDX-License-Identifier: Apache-2.0
"""A lab with a real API server: enrollment, annotations, Events, and an unreachable server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.helpers.harness import addresses, enrolled
from tests.lab.kubernetes.api_lab import ApiLab
from tests.lab.kubernetes.shop import (
    events,
    mark,
    replace_pod,
    requesting,
    set_mode,
    shop_pod,
    shop_world,
    source,
    until_captured,
    until_left,
    workload,
)
from tests.support.apiserver.objects import account, pod
from tests.support.apiserver.server import ApiServer
from tests.support.waiting import wait_until
from ztunnel.lab import admin_get
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION

pytestmark = pytest.mark.kubernetes

Object = dict[str, Any]


@pytest.fixture(scope="module")
def api(_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    """Namespaces `mesh` (ambient), `plain` and `shop` (neither); callers on node1, `shop-1` with
    its service on node2."""
    with (
        ApiServer(tmp_path_factory.mktemp("cluster")) as server,
        ApiLab(f"k{os.getpid() % 100000}", server) as made,
    ):
        problems = made.lab.apply(*shop_world())
        assert problems == []
        wait_until(lambda: workload(made, "shop/shop-1"), "the API has the pods")
        yield made


def test_captured_pods_are_annotated_and_others_are_not(api: ApiLab) -> None:
    until_captured(api, "mesh/caller", "node1")
    assert mark(api, "plain/caller") == ""


def test_removed_annotation_is_written_again(api: ApiLab) -> None:
    until_captured(api, "mesh/caller", "node1")
    api.server.kubectl("-n", "mesh", "annotate", "pod", "caller", f"{REDIRECTION_ANNOTATION}-")
    wait_until(lambda: mark(api, "mesh/caller") == "enabled", "the mark", timeout_s=10)


def test_refusals_are_events_with_a_hint(api: ApiLab) -> None:
    refused = pod("hosted", "mesh", "172.30.0.1", on="node1", host_network=True)
    api.server.apply(refused)
    try:
        wait_until(lambda: events(api, "mesh", "hosted"), "an Event", timeout_s=20)
        (event,) = events(api, "mesh", "hosted")
        assert (event["type"], event["reason"]) == ("Warning", "MeshCaptureRefused")
        assert "host network" in event["message"]
        assert "remove the label" in event["message"]
        assert event["source"] == {"component": "ztunnel-agent", "host": "node1"}
        assert "host network" in workload(api, "mesh/hosted")["capture_refused"]
        assert mark(api, "mesh/hosted") == ""
    finally:
        api.server.kubectl("-n", "mesh", "delete", "pod", "hosted", "--force", "--grace-period=0")


def test_pod_that_is_not_found_on_its_node_is_an_event(api: ApiLab) -> None:
    api.server.apply(account("ghost", "mesh"), pod("ghost", "mesh", "10.244.1.200", on="node1"))
    try:
        wait_until(lambda: events(api, "mesh", "ghost"), "an Event", timeout_s=40)
        (event,) = events(api, "mesh", "ghost")
        assert event["reason"] == "MeshCaptureFailed"
        assert "no process of the pod" in event["message"]
        assert "ztctl pod list" in event["message"]
    finally:
        api.server.kubectl("-n", "mesh", "delete", "pod", "ghost", "--force", "--grace-period=0")


def test_service_moves_between_ambient_sidecar_and_no_mesh_without_a_failed_request(
    api: ApiLab,
) -> None:
    with requesting(api, "mesh", "plain") as loops:

        def all_more() -> None:
            for loop in loops:
                loop.more()

        set_mode(api, "shop", "ambient")
        until_captured(api, "shop/shop-1", "node2")
        all_more()
        set_mode(api, "shop", "")
        until_left(api, "shop/shop-1", "node2")
        all_more()
        set_mode(api, "shop", "ambient")
        until_captured(api, "shop/shop-1", "node2")
        replace_pod(api, "shop-1", shop_pod("shop-2", **{"sidecar.istio.io/status": "{}"}))
        assert "sidecar" in workload(api, "shop/shop-2", "node2")["capture_refused"]
        assert not set(addresses(api.lab, "shop-2", "shop").values()) & enrolled(api.lab, "node2")
        all_more()
        replace_pod(api, "shop-2", shop_pod("shop-1"))
        until_captured(api, "shop/shop-1", "node2")
        all_more()
        set_mode(api, "plain", "ambient")  # and a caller that sends requests meanwhile
        until_captured(api, "plain/caller", "node1")
        all_more()
        set_mode(api, "plain", "")
        until_left(api, "plain/caller", "node1")
        set_mode(api, "shop", "")
        until_left(api, "shop/shop-1", "node2")


def test_lost_api_server_is_reported_and_interrupts_no_traffic(api: ApiLab) -> None:
    set_mode(api, "shop", "ambient")
    until_captured(api, "shop/shop-1", "node2")
    with requesting(api, "mesh") as loops:
        for relay in api.relays.values():
            relay.refuse()
        try:
            wait_until(lambda: not source(api)["present"], "the loss is reported")
            assert source(api)["synced"] is True
            loops[0].more(100)
            age = source(api)["age_seconds"]
            wait_until(lambda: source(api)["age_seconds"] > age, "the view's age grows")
            assert admin_get(api.lab.names, "node1", "/healthz/ready")[0] == 200
            page = api.lab.node_exec("node1", "curl", "-sS", "http://127.0.0.1:15020/metrics")
            assert "ztunnel_config_source_connected 0.0" in page.stdout, page
            assert workload(api, "shop/shop-1")["protocol"] == "HBONE"
        finally:
            for relay in api.relays.values():
                relay.thaw()
        wait_until(lambda: source(api)["present"], "its return", timeout_s=30)
    set_mode(api, "shop", "")
    until_left(api, "shop/shop-1", "node2")
