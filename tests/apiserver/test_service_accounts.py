# SPDX-License-Identifier: Apache-2.0
"""Deletion and creation of service accounts, with the permissions of deploy/."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.apiserver.control_plane import ControlPlane
from tests.support.apiserver.fault_proxy import FaultProxy
from tests.support.apiserver.objects import account, namespace
from tests.support.apiserver.rbac_fixture import manifest
from tests.support.apiserver.server import ApiServer
from tests.support.apiserver.source_runner import SourceRunner
from tests.support.waiting import wait_until, wait_until_async
from ztunnel.agent.cluster.service_accounts import blocked_reason_of_identity
from ztunnel.identity import ca
from ztunnel.identity.certificate_store import CertificateStore, KeyPair
from ztunnel.kube.writers.csr_client import CsrSigner

WEB = "spiffe://cluster.local/ns/shop/sa/web"


@pytest.fixture
def relay(fresh_server: ApiServer) -> Iterator[FaultProxy]:
    fresh_server.apply(namespace("shop"), account("web", "shop"))
    with FaultProxy(fresh_server.port) as made:
        yield made


def _lacks(following: SourceRunner, name: str) -> bool:
    return following.source.lacks_account("shop", name)


def test_account_create_and_delete_are_followed(fresh_server: ApiServer, relay: FaultProxy) -> None:
    with SourceRunner(fresh_server.admin_kubeconfig) as following:
        assert not _lacks(following, "web")
        assert _lacks(following, "other")
        fresh_server.kubectl("-n", "shop", "delete", "serviceaccount", "web")
        wait_until(lambda: _lacks(following, "web"), "gone")
        fresh_server.apply(account("web", "shop"), account("other", "shop"))
        wait_until(lambda: not _lacks(following, "web"), "back")
        assert not _lacks(following, "other")
        assert following.changes == following.changes[:1]  # no delta for the workers


def test_no_account_is_reported_missing_while_server_is_down(
    fresh_server: ApiServer, relay: FaultProxy
) -> None:
    way = fresh_server.kubeconfig("admin", ["system:masters"], url=relay.url)
    with SourceRunner(way, silence_timeout_s=2.0) as following:
        assert _lacks(following, "other")
        fresh_server.stop_api(kill=True)
        wait_until(lambda: not _lacks(following, "other"), "not known", timeout_s=30)
        fresh_server.start_api()
        fresh_server.kubectl("-n", "shop", "delete", "serviceaccount", "web")
        wait_until(lambda: _lacks(following, "web"), "known again", timeout_s=30)
        assert _lacks(following, "other")


def test_account_deleted_before_410_is_reported_missing(
    fresh_server: ApiServer, relay: FaultProxy
) -> None:
    way = fresh_server.kubeconfig("admin", ["system:masters"], url=relay.url)
    with SourceRunner(way, silence_timeout_s=2.0) as following:
        relay.refuse()
        fresh_server.kubectl("-n", "shop", "delete", "serviceaccount", "web")
        fresh_server.compact()
        fresh_server.stop_api()
        fresh_server.start_api()  # with an empty watch cache; etcd is compacted
        relay.thaw()
        wait_until(lambda: _lacks(following, "web"), "listed anew", timeout_s=30)
        assert following.view()["lists"]["ServiceAccount"] == 2


def test_agent_without_permission_for_accounts_still_syncs(
    server: ApiServer,
) -> None:
    role = next(obj for obj in manifest("agent-read.yaml") if obj["kind"] == "ClusterRole")
    for rule in role["rules"]:
        rule["resources"] = [each for each in rule["resources"] if each != "serviceaccounts"]
    role["metadata"] = {"name": "no-accounts"}
    server.apply(role)
    words = ("create", "clusterrolebinding", "no-accounts", "--clusterrole=no-accounts")
    server.kubectl(*words, "--user=no-accounts")
    with SourceRunner(server.kubeconfig("no-accounts")) as following:
        wait_until(lambda: "403" in following.errors().get("ServiceAccount", ""), "the error")
        assert not _lacks(following, "anybody")


async def test_no_certificate_is_requested_for_deleted_account(
    binaries: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "cluster"
    directory.mkdir()
    with ApiServer(directory, binaries) as server:
        mesh = ControlPlane(server)
        server.apply(*manifest("agent-read.yaml"))
        mesh.pod("shop", "web-1", account="web", node="node1")
        agent = mesh.agent("node1")
        with mesh.controller("one"), SourceRunner(agent) as following:
            wait_until(mesh.roots, "roots are published")
            signer = CsrSigner(server.client(agent), mesh.roots, timedelta(hours=1))
            other = ca.load_or_create(tmp_path / "other", "cluster.local").roots_pem
            await _lose_account(mesh, signer, following, other)


async def _lose_account(
    mesh: ControlPlane, signer: CsrSigner, following: SourceRunner, other_roots: bytes
) -> None:
    got: list[KeyPair] = []

    def blocked(identity: str) -> str:
        return blocked_reason_of_identity(following.source, identity)

    store = CertificateStore(signer, got.append, blocked_reason=blocked)
    store.ensure(WEB)
    await wait_until_async(lambda: len(got) == 1, timeout_s=30)
    await asyncio.to_thread(mesh.core.delete_namespaced_service_account, "web", "shop")
    await wait_until_async(lambda: store.statuses()[0].state == "blocked", timeout_s=30)
    assert store.current() == got  # the issued certificate is used until it expires
    store.set_roots(other_roots)  # no peer accepts it now: a renewal would be due
    asked = _requests(mesh)
    await asyncio.sleep(1)  # several renewal attempts
    assert _requests(mesh) == asked
    found = store.statuses()[0].last_error
    assert found == "service account shop/web does not exist"
    await asyncio.to_thread(mesh.account, "shop", "web")
    await wait_until_async(lambda: got[-1].serial != got[0].serial, timeout_s=30)
    await store.close()


def _requests(mesh: ControlPlane) -> int:
    return len(mesh.certificates.list_certificate_signing_request().items)
