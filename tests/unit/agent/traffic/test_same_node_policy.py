# SPDX-License-Identifier: Apache-2.0
"""Policy changes in the agent: bypass entries are revoked first, denied connections terminated."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import structlog

from tests.support.agent_fakes import FakeDataPath, FakeWorker, same_node_bypass
from tests.support.policies import Json, policies, policy
from tests.support.waiting import wait_until_async
from tests.unit.agent.test_agent import agent
from tests.unit.agent.traffic.test_same_node import (
    REPORT,
    REVISION,
    _allow_bypass,
    _entry,
    _pair,
    _report,
    captured,
)
from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.agent.pods.registry import PodTable
from ztunnel.datapath.same_node_maps import BypassEntry
from ztunnel.ipc.messages import MeshDelta
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.model import AuthorizationPolicy

ENTRY = BypassEntry(1, SocketAddress("10.244.1.3", 80), 2)


def denying(account: str = "web", namespace: str = "shop") -> Json:
    principal = f"cluster.local/ns/shop/sa/{account}"
    return policy(
        [{"from": [{"source": {"principals": [principal]}}]}], "DENY", namespace=namespace
    )


async def test_worker_gets_policies_in_snapshot_and_delta(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        a.say(denying())
        worker = FakeWorker(a.options.agent_socket).greet()
        await wait_until_async(lambda: any(d.complete for d in _deltas(worker)), "the snapshot")
        assert [p.key for p in _deltas(worker)[0].policies] == ["AuthorizationPolicy/shop/p"]
        a.view.delete("AuthorizationPolicy", "shop", "p")
        a.publish()
        await wait_until_async(lambda: bool(_deltas(worker)[-1].removed_policies), "the removal")
        assert _deltas(worker)[-1].removed_policies == ("AuthorizationPolicy/shop/p",)
        assert len(a.policies) == 0
        worker.close()


def _deltas(worker: FakeWorker) -> list[MeshDelta]:
    return [message for message in worker.messages if isinstance(message, MeshDelta)]


async def test_policy_change_revokes_bypass_before_it_is_applied(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        heard: list[int] = []
        a.kernel.on_revoke = lambda: heard.append(a.probe.revision)
        for obj in (denying(), denying("other"), policy(namespace="elsewhere")):
            a.kernel.given.append(ENTRY)
            before = a.probe.revision
            heard.clear()
            a.say(obj)
            assert heard == [before]
            assert a.kernel.given == []
        worker.close()


async def test_bypass_entry_needs_approval_of_the_agents_policy_engine(tmp_path: Path) -> None:
    """Even if a worker reports the pair as allowed."""

    async with agent(tmp_path) as a:
        worker = await _pair(a)
        a.say(denying("web"))
        worker.channel.send(_report(a))
        await wait_until_async(lambda: a.same_node.stats.reports_rejected == 1)
        assert a.kernel.given == []
        a.say(denying("other"))
        await _allow_bypass(a, worker)
        worker.close()


class Pair:
    """Two captured pods with a bypassed connection between them."""

    def __init__(self, directory: Path) -> None:
        self.kernel = FakeDataPath()
        self.kernel.connections = [_entry()]
        self.policies = PolicyEngine()
        self.a, self.b = captured("a", "10.244.1.2", 11), captured("b", "10.244.1.3", 12)
        self.a.netns = NetnsHandle(os.open(directory, os.O_RDONLY), 1)
        self.pods = PodTable([self.a, self.b])
        self.traffic = same_node_bypass(self.kernel, self.pods, self.policies)

    def put(self, *objects: Json) -> None:
        for each in policies(*objects):
            self.policies.put(each)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_recheck_terminates_and_logs_denied_connection(pair: Pair) -> None:
    pair.put(denying("a", pair.b.workload.namespace))
    identity = pair.a.workload.identity
    with structlog.testing.capture_logs() as lines:
        pair.traffic.recheck()
    denied = identity == "spiffe://cluster.local/ns/shop/sa/a"
    assert denied, identity
    assert pair.kernel.terminated == [_entry()]
    (line,) = lines
    assert line["event"] == "denied"
    assert line["response_flags"] == "DENY"
    assert line["policy"] == "AuthorizationPolicy shop/p"
    assert line["rule"] == "rules[0]"
    assert (line["src.identity"], line["dst.identity"]) == (identity, pair.b.workload.identity)
    assert pair.traffic.stats.denied == 1
    pair.a.close()


def test_recheck_leaves_allowed_connection(pair: Pair) -> None:
    pair.put(denying("other", pair.b.workload.namespace))
    pair.traffic.recheck()
    assert pair.kernel.terminated == []
    pair.a.close()


def test_connection_of_unknown_pods_is_checked_once_they_are_known(pair: Pair) -> None:
    """A starting agent finds connections of the previous agent before it has found the pods."""
    pair.put(denying("a", pair.b.workload.namespace))
    for pod in (pair.a, pair.b):
        pair.pods.remove(pod.uid)
    pair.traffic.recheck()
    assert pair.kernel.terminated == []
    for pod in (pair.a, pair.b):
        pair.pods.put(pod)
    pair.traffic.renew()
    assert pair.kernel.terminated == [_entry()]
    pair.kernel.terminated.clear()
    pair.traffic.renew()
    assert pair.kernel.terminated == []  # nothing is left to check
    pair.a.close()


def test_strict_mode_allows_bypass_between_local_pods(pair: Pair) -> None:
    """The kernel proves their identity."""
    from tests.support.policies import peer

    pair.put(peer("STRICT", namespace=pair.b.workload.namespace))
    pair.traffic.set_revision(REVISION)
    pair.traffic.allow(REPORT)
    assert pair.kernel.given
    pair.traffic.recheck()
    assert pair.kernel.terminated == []
    pair.a.close()


def test_policies_survive_encoding_of_the_link() -> None:
    (only,) = policies(denying())
    assert isinstance(only, AuthorizationPolicy)


def test_termination_that_fails_is_retried(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    pair.put(denying("a", pair.b.workload.namespace))
    with monkeypatch.context() as patch:
        patch.setattr(pair.kernel, "terminate", fail)
        pair.traffic.recheck()
        pair.traffic.renew()
    assert pair.kernel.terminated == []
    pair.traffic.renew()
    assert pair.kernel.terminated == [_entry()]
    pair.traffic.renew()
    assert pair.kernel.terminated == [_entry()]
    pair.a.close()
