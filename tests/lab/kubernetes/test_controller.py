# SPDX-License-Identifier: Apache-2.0
"""Nodes whose certificates come from the controller, with exactly the RBAC of deploy/."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.apiserver.test_controller_failover import new_ca, plug
from tests.lab.helpers.harness import APPS, named, python_pod
from tests.lab.kubernetes.api_lab import ApiLab
from tests.lab.kubernetes.shop import (
    events,
    requesting,
    set_mode,
    shop_pod,
    shop_service,
    until_captured,
    until_left,
)
from tests.support.apiserver.control_plane import ControlPlane
from tests.support.apiserver.objects import ambient
from tests.support.apiserver.server import ApiServer
from tests.support.waiting import wait_until
from ztunnel.identity import ca
from ztunnel.kube.constants import NAMESPACE, SELF_SIGNED_CA
from ztunnel.lab import admin_get
from ztunnel.proxy.tunnel.keepalive import PING_INTERVAL_S

pytestmark = pytest.mark.kubernetes

TTL = 16  # seconds; renewed after half of it


@pytest.fixture(scope="module")
def cluster(
    _root: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ApiLab, ControlPlane]]:
    """A caller on node1 and a shop on node2, both in the mesh; a controller on the API server."""
    with ApiServer(tmp_path_factory.mktemp("cluster")) as server:
        mesh = ControlPlane(server)
        options = ("--namespace", NAMESPACE)
        with (
            mesh.controller("one", f"--cert-ttl={TTL}"),
            ApiLab(f"c{os.getpid() % 100000}", server, agent_options=options) as made,
        ):
            problems = made.lab.apply(
                ambient("mesh"),
                named("Namespace", "shop"),
                named("ServiceAccount", "caller", "mesh"),
                named("ServiceAccount", "shop", "shop"),
                _with_account(python_pod("caller", "node1", namespace="mesh"), "caller"),
                _with_account(shop_pod("shop-1"), "shop"),
                shop_service(),
            )
            assert problems == []
            set_mode(made, "shop", "ambient")
            until_captured(made, "mesh/caller", "node1")
            until_captured(made, "shop/shop-1", "node2")
            yield made, mesh


def _with_account(pod: dict[str, Any], account: str) -> dict[str, Any]:
    pod["spec"]["serviceAccountName"] = account
    return pod


def certificates(api: ApiLab, node: str) -> dict[str, Any]:
    """The certificates of a node by identity, from the admin API of its agent."""
    _, answer = admin_get(api.lab.names, node, "/v1/certificates")
    return {row["identity"]: row for row in (answer or {}).get("certificates", ())}


def test_each_node_holds_certificates_of_its_own_pods_only(
    cluster: tuple[ApiLab, ControlPlane],
) -> None:
    api, _ = cluster
    assert not api.lab.names.ca.joinpath("ca-key.pem").exists()  # no node has a CA
    for node, account in (("node1", "mesh/sa/caller"), ("node2", "shop/sa/shop")):
        (only,) = certificates(api, node).values()
        assert only["identity"] == f"spiffe://cluster.local/ns/{account}"
        assert only["serial"]
        assert only["not_after"] - only["not_before"] <= TTL + 120


def test_deleted_account_gets_no_certificate_until_it_is_recreated(
    cluster: tuple[ApiLab, ControlPlane],
) -> None:
    api, mesh = cluster

    def caller() -> dict[str, Any]:
        (only,) = certificates(api, "node1").values()
        return dict(only)

    mesh.core.delete_namespaced_service_account("caller", "mesh")
    wait_until(lambda: caller()["state"] == "blocked", "the agent sees it", timeout_s=10)
    before = caller()
    vip = api.lab.get("Service", "shop", "shop")["spec"]["clusterIP"]

    def is_answered() -> bool:
        words = (sys.executable, str(APPS / "client.py"), "echo", vip, "7000", "hello")
        return "hello" in api.lab.exec("caller", *words, namespace="mesh").stdout

    assert is_answered()  # with the current certificate
    wait_until(
        lambda: not is_answered(), "certificate and tunnel end", timeout_s=3 * TTL + PING_INTERVAL_S
    )
    assert caller()["serial"] == before["serial"]
    wait_until(lambda: events(api, "mesh", "caller"), "an Event", timeout_s=20)
    assert events(api, "mesh", "caller")[0]["reason"] == "MeshCertificateBlocked"
    mesh.account("mesh", "caller")
    wait_until(lambda: caller()["state"] == "valid", "a new certificate", timeout_s=10)
    wait_until(is_answered, "the caller speaks again", timeout_s=10)


def test_root_is_replaced_without_a_failed_request(
    cluster: tuple[ApiLab, ControlPlane],
) -> None:
    """After each step the shop leaves and rejoins the mesh, so that new tunnels are opened."""
    api, mesh = cluster
    new = new_ca()

    def serial(node: str) -> str:
        (only,) = certificates(api, node).values()
        return str(only["serial"])

    def shake_hands_anew() -> None:
        set_mode(api, "shop", "")
        until_left(api, "shop/shop-1", "node2")
        set_mode(api, "shop", "ambient")
        until_captured(api, "shop/shop-1", "node2")

    with requesting(api, "mesh") as (loop,):
        shake_hands_anew()
        plug(mesh, new)
        wait_until(
            lambda: mesh.roots().count(b"BEGIN") == 2, "both roots are published", timeout_s=30
        )
        shake_hands_anew()
        loop.more()
        wait_until(
            lambda: mesh.log("one").count('"CA active"') == 2, "the new CA signs", timeout_s=30
        )
        for node in ("node1", "node2"):
            wait_until(
                partial(_is_new, serial(node), partial(serial, node)),
                f"{node} renews",
                timeout_s=60,
            )
            shake_hands_anew()
            loop.more()
        mesh.core.delete_namespaced_secret(SELF_SIGNED_CA, NAMESPACE)
        wait_until(lambda: mesh.roots() == new[ca.ROOT_CERT], "the old root is gone", timeout_s=60)
        shake_hands_anew()
        loop.more()


def _is_new(before: str, now: Callable[[], str]) -> bool:
    return now() != before
