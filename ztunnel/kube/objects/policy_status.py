# SPDX-License-Identifier: Apache-2.0
"""What is said of a policy in its own status: whether nodes take it as it is written, and why not.

    status.conditions[type=ZtunnelAccepted]
      True   Accepted              in force as written
      True   UnsupportedValue      in force, but not all of it as written; the reason Istio gives
      True   NoEffect              it is about what nodes do not do
      False  Invalid               refused as a whole; the message tells what is done instead

The type is the one that Istio gives in ambient mode. It is judged by the code that the agents use,
from the object alone, so that it is true of every node. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ztunnel.kube.objects.fields import Object, TranslateError
from ztunnel.kube.objects.policies import read_authorization_policy, read_peer_authentication
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE
from ztunnel.mesh.policy.model import Action, AuthorizationPolicy, Policy

CONDITION = "ZtunnelAccepted"
JUDGED = ("AuthorizationPolicy", "PeerAuthentication")
_LONGEST = 1024  # characters of a message


@dataclass(frozen=True)
class PolicyCondition:
    """One condition, without its time."""

    accepted: bool
    reason: str
    message: str

    def condition(self, generation: int, since: str) -> dict[str, object]:
        """As Kubernetes writes conditions. `since`: RFC 3339."""
        return {
            "type": CONDITION,
            "status": "True" if self.accepted else "False",
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        }


def judge(obj: Object) -> PolicyCondition:
    """What nodes make of an AuthorizationPolicy or PeerAuthentication."""
    policy: Policy
    try:
        if obj["kind"] == "AuthorizationPolicy":
            # which namespace is the root says whom a policy takes, not whether it is understood
            policy = read_authorization_policy(obj, DEFAULT_ROOT_NAMESPACE).policy
        else:
            policy = read_peer_authentication(obj, DEFAULT_ROOT_NAMESPACE)
    except TranslateError as error:
        return PolicyCondition(False, "Invalid", str(error)[:_LONGEST])
    if policy.refused:
        said = f"{policy.refused}; instead, {_instead(policy)}"
        return PolicyCondition(False, "Invalid", said[:_LONGEST])
    ignored = policy.ignored if isinstance(policy, AuthorizationPolicy) else ""
    if ignored:
        return PolicyCondition(True, "NoEffect", ignored[:_LONGEST])
    if policy.warnings:
        return PolicyCondition(True, "UnsupportedValue", "; ".join(policy.warnings)[:_LONGEST])
    return PolicyCondition(True, "Accepted", "in force on every node")


def _instead(policy: Policy) -> str:
    if not isinstance(policy, AuthorizationPolicy):
        return "STRICT is in force"
    if policy.ignored:
        return "it has no effect, as it would have had none"
    if policy.action is Action.ALLOW:
        return "it allows nothing"
    return "all that it selects is denied" + (", in its dry run" if policy.dry_run else "")


def told(obj: Object) -> Mapping[str, object]:
    """The condition that an object has; empty when it has none."""
    status = obj.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    for each in conditions if isinstance(conditions, list) else ():
        if isinstance(each, dict) and each.get("type") == CONDITION:
            return each
    return {}


def due(obj: Object, now: str) -> dict[str, object] | None:
    """The condition to write now; None when the object says so already."""
    metadata = obj["metadata"]
    before = told(obj)
    since = str(before.get("lastTransitionTime") or now)
    wanted = judge(obj).condition(int(metadata.get("generation") or 0), since)
    if wanted == before:
        return None
    if wanted["status"] != before.get("status"):
        wanted["lastTransitionTime"] = now
    return wanted
