# SPDX-License-Identifier: Apache-2.0
"""The agent's source against a real API server: deltas, interrupted watches, outages, 410."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.apiserver.fault_proxy import FaultProxy
from tests.support.apiserver.objects import (
    Object,
    ambient,
    endpoints,
    namespace,
    node,
    pod,
    service,
)
from tests.support.apiserver.server import ROOT, ApiServer
from tests.support.apiserver.source_runner import SourceRunner
from tests.support.waiting import wait_until
from ztunnel.kube.client import reflector
from ztunnel.mesh.model import TunnelProtocol

SHORT_SILENCE_S = 2.0  # shorter than in production, to detect a dead connection quickly


@pytest.fixture
def relay(fresh_server: ApiServer) -> Iterator[FaultProxy]:
    with FaultProxy(fresh_server.port) as made:
        yield made


@pytest.fixture
def following(fresh_server: ApiServer, relay: FaultProxy) -> Iterator[SourceRunner]:
    """Through the proxy; the first view has one enrolled pod `a` in namespace `mesh`."""
    fresh_server.apply(ambient("mesh"), pod("a", "mesh", "10.1.0.1"))
    kubeconfig = fresh_server.kubeconfig("admin", ["system:masters"], url=relay.url)
    with SourceRunner(kubeconfig, silence_timeout_s=SHORT_SILENCE_S) as made:
        assert made.workload("a", "mesh").protocol is TunnelProtocol.HBONE
        yield made


def test_every_kind_is_translated(server: ApiServer) -> None:
    server.apply(
        ambient("kinds"),
        node("n1", "192.0.2.1", "2001:db8::1"),
        node("n2", "192.0.2.2"),
        pod("a", "kinds", "10.2.0.1"),
        service("web", "kinds"),
        endpoints("web", "kinds", ("a", "10.2.0.1")),
    )
    with SourceRunner(server.admin_kubeconfig) as following:
        workload = following.workload("a", "kinds")
        assert workload.identity == "spiffe://cluster.local/ns/kinds/sa/a"
        assert (workload.protocol, workload.node) == (TunnelProtocol.HBONE, "n1")
        web = following.state.service("kinds/web")
        assert web is not None
        assert [endpoint.workload for endpoint in web.endpoints] == [workload.uid]
        assert web.vips[0].startswith("10.96.")
        assert following.mirror.node_addresses("n1") == ["192.0.2.1", "2001:db8::1"]
        assert following.mirror.node_addresses("n2") == []  # other nodes are not watched


def test_enrollment_follows_namespace_label(server: ApiServer) -> None:
    server.apply(namespace("labels"), pod("a", "labels", "10.3.0.1"))
    with SourceRunner(server.admin_kubeconfig) as following:
        assert following.workload("a", "labels").protocol is TunnelProtocol.NONE
        server.kubectl("label", "ns", "labels", "istio.io/dataplane-mode=ambient")
        wait_until(
            lambda: following.workload("a", "labels").protocol is TunnelProtocol.HBONE, "enrolled"
        )
        server.kubectl("label", "ns", "labels", "istio.io/dataplane-mode-")
        wait_until(
            lambda: following.workload("a", "labels").protocol is TunnelProtocol.NONE, "left"
        )


def test_change_is_delivered_as_delta(server: ApiServer) -> None:
    server.apply(ambient("delta"), *(pod(f"p{n}", "delta", f"10.4.0.{n}") for n in range(1, 12)))
    with SourceRunner(server.admin_kubeconfig) as following:
        first = len(following.changes)
        server.kubectl("-n", "delta", "label", "pod", "p7", "colour=blue")
        wait_until(lambda: len(following.changes) > first, "a delta")
        (change,) = following.changes[first:]
        assert [workload.name for workload in change.workloads] == ["p7"]
        assert [*change.services, *change.removed_workloads, *change.removed_services] == []
        server.kubectl("-n", "delta", "delete", "pod", "p9", "--grace-period=0", "--force")
        wait_until(lambda: following.workload("p9", "delta") is None, "removal")


def test_change_of_unused_field_is_no_delta(server: ApiServer) -> None:
    server.apply(ambient("quiet"), pod("a", "quiet", "10.5.0.1"))
    with SourceRunner(server.admin_kubeconfig) as following:
        first = len(following.changes)
        server.kubectl("-n", "quiet", "annotate", "pod", "a", "example.com/note=x")
        server.kubectl("-n", "quiet", "label", "pod", "a", "seen=1")
        wait_until(lambda: len(following.changes) > first, "a delta")
        assert len(following.changes) == first + 1


def test_cut_watch_continues_without_loss_or_duplicates(
    fresh_server: ApiServer, relay: FaultProxy, following: SourceRunner
) -> None:
    fresh_server.apply(pod("past", "mesh", "10.1.0.9"))
    fresh_server.kubectl("-n", "mesh", "delete", "pod", "past", "--grace-period=0", "--force")
    fresh_server.apply(pod("now", "mesh", "10.1.0.8"))
    wait_until(lambda: following.workload("now", "mesh"), "earlier events are delivered")
    before = len(following.changes)
    last = following.view()["versions"]["Pod"]
    for n in range(2, 6):
        relay.cut()
        fresh_server.apply(pod(f"b{n}", "mesh", f"10.1.0.{n}"))
    wait_until(lambda: following.workload("b5", "mesh"), "the last pod")
    delivered = [w.name for change in following.changes[before:] for w in change.workloads]
    assert sorted(delivered) == ["b2", "b3", "b4", "b5"]  # each exactly once
    assert int(following.view()["versions"]["Pod"]) > int(last)
    assert following.view()["lists"]["Pod"] == 1  # continued, not listed again


def test_silent_connection_is_replaced(
    fresh_server: ApiServer, relay: FaultProxy, following: SourceRunner
) -> None:
    relay.freeze()
    fresh_server.apply(pod("b", "mesh", "10.1.0.2"))
    wait_until(lambda: not following.view()["present"], "the loss is noticed", timeout_s=20)
    assert following.workload("b", "mesh") is None
    relay.cut()
    relay.thaw()
    wait_until(lambda: following.workload("b", "mesh"), "what was missed", timeout_s=30)


def test_last_state_stays_in_force_while_server_is_lost(
    fresh_server: ApiServer, relay: FaultProxy, following: SourceRunner
) -> None:
    known, delivered = following.workload("a", "mesh"), len(following.changes)
    relay.refuse()
    wait_until(lambda: len(following.errors()) == 6, "every kind's loss", timeout_s=20)
    age = following.view()["age_seconds"]
    wait_until(lambda: following.view()["age_seconds"] > age + 1, "the age grows")
    assert following.view()["present"] is False
    assert following.workload("a", "mesh") == known
    assert len(following.changes) == delivered
    relay.thaw()
    wait_until(
        lambda: following.view()["present"] and not following.errors(), "its return", timeout_s=30
    )


@pytest.mark.parametrize("kill", [False, True])
def test_watch_continues_after_server_restart(
    fresh_server: ApiServer, following: SourceRunner, kill: bool
) -> None:
    delivered = len(following.changes)
    fresh_server.stop_api(kill=kill)
    wait_until(lambda: not following.view()["present"], "the loss", timeout_s=20)
    fresh_server.start_api()
    fresh_server.apply(pod("b", "mesh", "10.1.0.2"))
    wait_until(lambda: following.workload("b", "mesh"), "the new pod", timeout_s=30)
    names = [w.name for change in following.changes[delivered:] for w in change.workloads]
    assert names == ["b"]  # even if kinds were listed again


def test_410_after_compaction_leads_to_relist(
    fresh_server: ApiServer, relay: FaultProxy, following: SourceRunner
) -> None:
    fresh_server.apply(pod("b", "mesh", "10.1.0.2"), pod("c", "mesh", "10.1.0.3"))
    wait_until(lambda: following.workload("c", "mesh"), "both pods")
    relay.refuse()
    delivered = len(following.changes)
    fresh_server.kubectl("-n", "mesh", "delete", "pod", "b", "--grace-period=0", "--force")
    fresh_server.kubectl("-n", "mesh", "label", "pod", "c", "colour=blue")
    fresh_server.apply(pod("d", "mesh", "10.1.0.4"))
    fresh_server.compact()
    fresh_server.stop_api()
    fresh_server.start_api()  # with an empty watch cache; etcd is compacted
    relay.thaw()
    wait_until(lambda: following.workload("d", "mesh"), "the new pod", timeout_s=30)
    assert following.view()["lists"]["Pod"] == 2
    assert following.workload("b", "mesh") is None
    assert following.workload("c", "mesh").labels["colour"] == "blue"
    names = [w.name for change in following.changes[delivered:] for w in change.workloads]
    assert sorted(names) == ["c", "d"]  # "a" is listed again, but unchanged


def test_source_waits_for_server_at_start(fresh_server: ApiServer) -> None:
    fresh_server.apply(ambient("mesh"), pod("a", "mesh", "10.1.0.1"))
    fresh_server.stop_api()
    following = SourceRunner(fresh_server.admin_kubeconfig)
    following.start()
    with_error = wait_until(following.errors, "an error to show")
    assert "Pod" in with_error
    assert not following.is_synced
    fresh_server.start_api()
    wait_until(lambda: following.is_synced, "the first view", timeout_s=30)
    assert following.workload("a", "mesh").protocol is TunnelProtocol.HBONE
    following.__exit__(None, None, None)


def test_policies_are_followed_after_crds_are_installed(
    fresh_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "NOT_INSTALLED_RETRY_S", 0.5)
    with SourceRunner(fresh_server.admin_kubeconfig) as following:
        assert following.mirror.snapshot().policies == ()
        assert following.errors() == {}  # a missing CRD is not an error
        fresh_server.kubectl("apply", "--server-side", "-f", str(ROOT / "deploy/crds"))
        fresh_server.kubectl("wait", "--for=condition=Established", "crd", "--all")
        fresh_server.apply(namespace("guarded"), denial("guarded"))
        wait_until(lambda: following.mirror.snapshot().policies, "the policy", timeout_s=30)
        delivered = [policy for change in following.changes for policy in change.policies]
        assert [policy.key for policy in delivered] == ["AuthorizationPolicy/guarded/none"]
        fresh_server.kubectl("-n", "guarded", "delete", "authorizationpolicy", "none")
        wait_until(lambda: not following.mirror.snapshot().policies, "its removal")


def test_first_view_includes_policies(fresh_server: ApiServer) -> None:
    fresh_server.kubectl("apply", "--server-side", "-f", str(ROOT / "deploy/crds"))
    fresh_server.kubectl("wait", "--for=condition=Established", "crd", "--all")
    fresh_server.apply(namespace("guarded"), denial("guarded"))
    with SourceRunner(fresh_server.admin_kubeconfig) as following:
        assert len(following.changes[0].policies) == 1  # no view without it


def denial(space: str) -> Object:
    """An AuthorizationPolicy that denies everything."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "none", "namespace": space},
        "spec": {},
    }


def test_stop_while_watches_are_opening(server: ApiServer) -> None:
    for _ in range(5):
        following = SourceRunner(server.admin_kubeconfig)
        following.__enter__()
        began = time.monotonic()
        following.__exit__(None, None, None)
        assert time.monotonic() - began < 15  # less than the bookmark interval
