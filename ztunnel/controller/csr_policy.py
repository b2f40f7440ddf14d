# SPDX-License-Identifier: Apache-2.0
"""Whether a request is signed: pure, from what the API server attests.

    Asked --claim()--> Claim --prove(pods, account)--> Approved
       \\                  \\
        +-----> Denied <----+

The claim comes first, for it tells what to look at. Everything that is believed comes from the API
server: who asks and from which node (both set by it from the token, never by the requester), which
pods run there, and whether their service account is there still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from ztunnel.identity import csr_signer
from ztunnel.kube.constants import USAGES
from ztunnel.mesh.spiffe import SpiffeId

FINISHED = ("Succeeded", "Failed")  # pod phases in which no container runs any more


class Reason(StrEnum):
    """Of a condition on the request, as `kubectl describe csr` shows it."""

    APPROVED = "PodRunsOnNode"
    REQUESTER = "RequesterNotAgent"
    UNBOUND = "TokenNotBoundToNode"
    USAGES = "UsagesNotAllowed"
    REQUEST = "RequestNotAllowed"
    TRUST_DOMAIN = "ForeignTrustDomain"
    NO_POD = "NoSuchPodOnNode"
    HOST_NETWORK = "PodOnHostNetwork"
    NO_ACCOUNT = "NoSuchServiceAccount"


@dataclass(frozen=True)
class Terms:
    """`agent` is the user name of the agent's service account; `ttl` the longest lifetime."""

    trust_domain: str
    agent: str
    ttl: timedelta


@dataclass(frozen=True)
class Asked:
    """A request. `node` is empty when the requester's token is not bound to one."""

    user: str
    node: str
    usages: tuple[str, ...]
    csr_pem: bytes
    lifetime: timedelta | None = None


@dataclass(frozen=True)
class Pod:
    """A pod as the API server has it now."""

    namespace: str
    name: str
    service_account: str
    node: str
    phase: str
    host_network: bool


@dataclass(frozen=True)
class Claim:
    """A well-formed request of an agent: true if a pod of `identity` is on `node`."""

    identity: SpiffeId
    node: str
    ttl: timedelta


@dataclass(frozen=True)
class Approved:
    """To be signed for `identity`, for `ttl` at most."""

    identity: str
    ttl: timedelta
    message: str


@dataclass(frozen=True)
class Denied:
    """Never to be signed; `message` says what was found and what would be right."""

    reason: Reason
    message: str


def claim(asked: Asked, terms: Terms) -> Claim | Denied:
    """All that can be judged without looking at pods."""
    if asked.user != terms.agent:
        return Denied(Reason.REQUESTER, f"{asked.user!r} asks; only {terms.agent!r} may")
    if not asked.node:
        return Denied(
            Reason.UNBOUND,
            "the requester's token names no node; it must be the token of a pod "
            "(Kubernetes 1.30 or later puts the pod's node in it)",
        )
    if sorted(asked.usages) != sorted(USAGES):
        return Denied(
            Reason.USAGES, f"usages are {', '.join(asked.usages)}; they must be {', '.join(USAGES)}"
        )
    try:
        identity = csr_signer.requested_identity(asked.csr_pem)
    except csr_signer.CsrRejected as refused:
        return Denied(Reason.REQUEST, str(refused))
    if identity.trust_domain != terms.trust_domain:
        return Denied(
            Reason.TRUST_DOMAIN,
            f"{identity} is not of the trust domain {terms.trust_domain}; "
            "give agent and signer the same --trust-domain",
        )
    return Claim(identity, asked.node, min(asked.lifetime or terms.ttl, terms.ttl))


def prove(wanted: Claim, pods: Sequence[Pod], *, account_exists: bool) -> Approved | Denied:
    """Whether one of `pods` makes the claim true; others than the claim's are passed over.

    A pod outlives its account, but the account's rights must not: `account_exists` is asked too.
    """
    account = f"{wanted.identity.namespace}/{wanted.identity.service_account}"
    candidates = [pod for pod in pods if _is_of(pod, wanted)]
    running = [pod for pod in candidates if not pod.host_network]
    if running and not account_exists:
        return Denied(
            Reason.NO_ACCOUNT,
            f"service account {account} does not exist, though pod {running[0].name} runs as it "
            f"on {wanted.node}; make it again, or delete the pod",
        )
    if running:
        text = f"pod {running[0].namespace}/{running[0].name} runs on {wanted.node}"
        return Approved(str(wanted.identity), wanted.ttl, text)
    if candidates:
        return Denied(
            Reason.HOST_NETWORK,
            f"pod {candidates[0].namespace}/{candidates[0].name} uses the host's network, "
            "so the mesh carries nothing of it",
        )
    return Denied(Reason.NO_POD, f"no pod of service account {account} runs on {wanted.node}")


def _is_of(pod: Pod, wanted: Claim) -> bool:
    where = (pod.node, pod.namespace, pod.service_account)
    expected = (wanted.node, wanted.identity.namespace, wanted.identity.service_account)
    return where == expected and pod.phase not in FINISHED
