# SPDX-License-Identifier: Apache-2.0
"""Decides whether a certificate request is signed. Pure.

    CsrFacts ──check_request()──▶ Claim ──check_claim(pods, account)──▶ Approved
        └───────────▶ Denied ◀──────┘

Only facts from the API server count: the requester and its node (the API server sets both from the
token), the pods that run there, and whether their service account still exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from ztunnel.identity import csr_signer
from ztunnel.kube.constants import USAGES
from ztunnel.mesh.spiffe import SpiffeId

FINISHED_PHASES = ("Succeeded", "Failed")  # no container of such a pod runs


class Reason(StrEnum):
    """The reason of a request's condition, shown by `kubectl describe csr`."""

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
class CsrPolicyConfig:
    """`agent_user`: user name of the agents' service account; `max_ttl`: longest lifetime."""

    trust_domain: str
    agent_user: str
    max_ttl: timedelta


@dataclass(frozen=True)
class CsrFacts:
    """A request as the API server attests it. `node` is empty if the token is bound to none."""

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
    """A well-formed request of an agent: a pod with `identity` runs on `node`."""

    identity: SpiffeId
    node: str
    ttl: timedelta


@dataclass(frozen=True)
class Approved:
    """Sign for `identity`, for at most `ttl`."""

    identity: str
    ttl: timedelta
    message: str


@dataclass(frozen=True)
class Denied:
    """Do not sign, now or later. `message`: what was found and what is required."""

    reason: Reason
    message: str


def check_request(facts: CsrFacts, config: CsrPolicyConfig) -> Claim | Denied:
    """Check everything that does not depend on pods."""
    if facts.user != config.agent_user:
        return Denied(
            Reason.REQUESTER, f"requested by {facts.user!r}; only {config.agent_user!r} may request"
        )
    if not facts.node:
        return Denied(
            Reason.UNBOUND,
            "the requester's token is not bound to a node; use the token of a pod "
            "(Kubernetes 1.30 or later includes the pod's node)",
        )
    if sorted(facts.usages) != sorted(USAGES):
        return Denied(
            Reason.USAGES, f"usages are {', '.join(facts.usages)}, want {', '.join(USAGES)}"
        )
    try:
        identity = csr_signer.requested_identity(facts.csr_pem)
    except csr_signer.CsrRejected as rejected:
        return Denied(Reason.REQUEST, str(rejected))
    if identity.trust_domain != config.trust_domain:
        return Denied(
            Reason.TRUST_DOMAIN,
            f"{identity} is not in the trust domain {config.trust_domain}; "
            "hint: start agent and controller with the same --trust-domain",
        )
    ttl = min(facts.lifetime or config.max_ttl, config.max_ttl)
    return Claim(identity, facts.node, ttl)


def check_claim(claim: Claim, pods: Sequence[Pod], *, account_exists: bool) -> Approved | Denied:
    """Whether one of `pods` proves the claim; pods that do not match it are ignored.

    A pod can outlive its service account, but the account's rights must end with the account.
    """
    account = f"{claim.identity.namespace}/{claim.identity.service_account}"
    candidates = [pod for pod in pods if _matches(pod, claim)]
    running = [pod for pod in candidates if not pod.host_network]
    if running and not account_exists:
        return Denied(
            Reason.NO_ACCOUNT,
            f"service account {account} does not exist, but pod {running[0].name} runs as it on "
            f"{claim.node}; hint: recreate the account, or delete the pod",
        )
    if running:
        message = f"pod {running[0].namespace}/{running[0].name} runs on {claim.node}"
        return Approved(str(claim.identity), claim.ttl, message)
    if candidates:
        return Denied(
            Reason.HOST_NETWORK,
            f"pod {candidates[0].namespace}/{candidates[0].name} uses the host network, "
            "which the mesh does not capture",
        )
    return Denied(Reason.NO_POD, f"no pod of service account {account} runs on {claim.node}")


def _matches(pod: Pod, claim: Claim) -> bool:
    found = (pod.node, pod.namespace, pod.service_account)
    wanted = (claim.node, claim.identity.namespace, claim.identity.service_account)
    return found == wanted and pod.phase not in FINISHED_PHASES
