# SPDX-License-Identifier: Apache-2.0
"""Certificate policy: every reason for denying a request, as a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.controller.csr_policy import (
    Approved,
    Claim,
    CsrFacts,
    CsrPolicyConfig,
    Denied,
    Pod,
    Reason,
    check_claim,
    check_request,
)
from ztunnel.identity.csr import new_request

AGENT = "system:serviceaccount:ztunnel-system:ztunnel-agent"
CONFIG = CsrPolicyConfig("cluster.local", AGENT, timedelta(hours=24))
WEB = "spiffe://cluster.local/ns/shop/sa/web"
GOOD = CsrFacts(
    user=AGENT,
    node="node1",
    usages=("digital signature", "server auth", "client auth"),
    csr_pem=new_request(WEB).csr_pem,
)
POD = Pod("shop", "web-1", "web", "node1", "Running", host_network=False)


def _csr(identity: str) -> bytes:
    return new_request(identity).csr_pem


def _decide(facts: CsrFacts, *pods: Pod, account_exists: bool = True) -> Approved | Denied:
    claim = check_request(facts, CONFIG)
    if isinstance(claim, Denied):
        return claim
    return check_claim(claim, pods, account_exists=account_exists)


def test_request_for_identity_of_running_pod_is_approved() -> None:
    decided = _decide(GOOD, POD)
    assert decided == Approved(WEB, timedelta(hours=24), "pod shop/web-1 runs on node1")


REQUESTS: dict[str, tuple[Reason, CsrFacts]] = {
    "another user": (Reason.REQUESTER, replace(GOOD, user="system:admin")),
    "another account of the namespace": (
        Reason.REQUESTER,
        replace(GOOD, user="system:serviceaccount:ztunnel-system:default"),
    ),
    "the same account of another namespace": (
        Reason.REQUESTER,
        replace(GOOD, user="system:serviceaccount:shop:ztunnel-agent"),
    ),
    "no user": (Reason.REQUESTER, replace(GOOD, user="")),
    "a token without a node": (Reason.UNBOUND, replace(GOOD, node="")),
    "no usages": (Reason.USAGES, replace(GOOD, usages=())),
    "a usage too few": (Reason.USAGES, replace(GOOD, usages=GOOD.usages[:2])),
    "a usage too many": (Reason.USAGES, replace(GOOD, usages=(*GOOD.usages, "cert sign"))),
    "another usage": (
        Reason.USAGES,
        replace(GOOD, usages=("cert sign", "server auth", "client auth")),
    ),
    "no request": (Reason.REQUEST, replace(GOOD, csr_pem=b"hello")),
    "no identity": (Reason.REQUEST, replace(GOOD, csr_pem=_csr("https://cluster.local"))),
    "another trust domain": (
        Reason.TRUST_DOMAIN,
        replace(GOOD, csr_pem=_csr("spiffe://evil.example/ns/shop/sa/web")),
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_invalid_request_is_denied_even_if_pod_runs(case: str) -> None:
    reason, facts = REQUESTS[case]
    decided = _decide(facts, POD)
    assert isinstance(decided, Denied)
    assert decided.reason is reason


PODS: dict[str, tuple[Reason, tuple[Pod, ...]]] = {
    "no pod": (Reason.NO_POD, ()),
    "on another node": (Reason.NO_POD, (replace(POD, node="node2"),)),
    "not yet on a node": (Reason.NO_POD, (replace(POD, node=""),)),
    "of another namespace": (Reason.NO_POD, (replace(POD, namespace="other"),)),
    "of another account": (Reason.NO_POD, (replace(POD, service_account="db"),)),
    "it has succeeded": (Reason.NO_POD, (replace(POD, phase="Succeeded"),)),
    "it has failed": (Reason.NO_POD, (replace(POD, phase="Failed"),)),
    "on the host's network": (Reason.HOST_NETWORK, (replace(POD, host_network=True),)),
}


@pytest.mark.parametrize("case", PODS)
def test_claim_without_matching_pod_is_denied(case: str) -> None:
    reason, pods = PODS[case]
    decided = _decide(GOOD, *pods)
    assert isinstance(decided, Denied)
    assert decided.reason is reason


def test_pending_pod_proves_claim() -> None:
    assert isinstance(_decide(GOOD, replace(POD, phase="Pending")), Approved)


def test_host_network_pod_does_not_hide_matching_pod() -> None:
    assert isinstance(_decide(GOOD, replace(POD, host_network=True), POD), Approved)


@pytest.mark.parametrize(("asked", "granted"), [(None, 24), (1, 1), (48, 24)])
def test_lifetime_is_limited_to_maximum(asked: int | None, granted: int) -> None:
    lifetime = timedelta(hours=asked) if asked else None
    decided = _decide(replace(GOOD, lifetime=lifetime), POD)
    assert isinstance(decided, Approved)
    assert decided.ttl == timedelta(hours=granted)


names = st.sampled_from(["", "a", "b"])
pods = st.builds(
    Pod,
    namespace=names,
    name=names,
    service_account=names,
    node=names,
    phase=st.sampled_from(["", "Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    host_network=st.booleans(),
)


@given(st.lists(pods, max_size=4))
def test_only_matching_pod_proves_claim(found: list[Pod]) -> None:
    from ztunnel.mesh.spiffe import SpiffeId

    claim = Claim(SpiffeId("cluster.local", "a", "b"), "b", timedelta(hours=1))
    matching = [
        pod
        for pod in found
        if (pod.namespace, pod.service_account, pod.node) == ("a", "b", "b")
        and pod.phase not in ("Succeeded", "Failed")
        and not pod.host_network
    ]
    assert isinstance(check_claim(claim, found, account_exists=True), Approved) == bool(matching)
    assert isinstance(check_claim(claim, found, account_exists=False), Denied)


def test_pod_of_deleted_account_does_not_prove_claim() -> None:
    denied = _decide(GOOD, POD, account_exists=False)
    assert isinstance(denied, Denied)
    assert denied.reason is Reason.NO_ACCOUNT
    assert "service account shop/web does not exist, but pod web-1 runs" in denied.message
