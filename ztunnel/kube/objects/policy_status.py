# SPDX-License-Identifier: Apache-2.0
"""The status condition of a policy: whether nodes accept it as written. Pure.

    status.conditions[type=ZtunnelAccepted]
      True   Accepted              enforced as written
      True   UnsupportedValue      enforced, but not every part as written; Istio's reason
      True   NoEffect              concerns something that nodes do not do
      False  Invalid               rejected as a whole; the message states what is enforced instead

The condition type is the one that Istio sets in ambient mode. The agents' own parser evaluates the
object alone, so the condition is the same for every node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ztunnel.kube.objects.fields import Object, TranslateError
from ztunnel.kube.objects.policies import read_authorization_policy, read_peer_authentication
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE
from ztunnel.mesh.policy.model import Action, AuthorizationPolicy, Policy

CONDITION = "ZtunnelAccepted"
KINDS = ("AuthorizationPolicy", "PeerAuthentication")
_MAX_MESSAGE_CHARS = 1024


@dataclass(frozen=True)
class PolicyCondition:
    """A condition without its time."""

    accepted: bool
    reason: str
    message: str

    def condition(self, generation: int, since: str) -> dict[str, object]:
        """As a Kubernetes condition. `since`: RFC 3339."""
        return {
            "type": CONDITION,
            "status": "True" if self.accepted else "False",
            "reason": self.reason,
            "message": self.message[:_MAX_MESSAGE_CHARS],
            "observedGeneration": generation,
            "lastTransitionTime": since,
        }


def evaluate(obj: Object) -> PolicyCondition:
    """The condition of an AuthorizationPolicy or PeerAuthentication."""
    policy: Policy
    try:
        if obj["kind"] == "AuthorizationPolicy":
            # the root namespace affects which pods are selected, not whether the policy is valid
            policy = read_authorization_policy(obj, DEFAULT_ROOT_NAMESPACE).policy
        else:
            policy = read_peer_authentication(obj, DEFAULT_ROOT_NAMESPACE)
    except TranslateError as error:
        return PolicyCondition(False, "Invalid", str(error))
    if policy.refused:
        return PolicyCondition(False, "Invalid", f"{policy.refused}; instead, {_fallback(policy)}")
    ignored = policy.ignored if isinstance(policy, AuthorizationPolicy) else ""
    if ignored:
        return PolicyCondition(True, "NoEffect", ignored)
    if policy.warnings:
        return PolicyCondition(True, "UnsupportedValue", "; ".join(policy.warnings))
    return PolicyCondition(True, "Accepted", "in force on every node")


def _fallback(policy: Policy) -> str:
    """What is enforced instead of a rejected policy."""
    if not isinstance(policy, AuthorizationPolicy):
        return "STRICT is in force"
    if policy.ignored:
        return "it has no effect, as a valid policy of this action"
    if policy.action is Action.ALLOW:
        return "it allows nothing"
    return "all traffic that it selects is denied" + (" (dry run)" if policy.dry_run else "")


def current_condition(obj: Object) -> Mapping[str, object]:
    """The object's condition of our type; empty if it has none."""
    status = obj.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    for each in conditions if isinstance(conditions, list) else ():
        if isinstance(each, dict) and each.get("type") == CONDITION:
            return each
    return {}


def pending_condition(
    obj: Object, now: str, evaluate: Callable[[Object], PolicyCondition] = evaluate
) -> dict[str, object] | None:
    """The condition to write; None if the object has it."""
    metadata = obj["metadata"]
    before = current_condition(obj)
    since = str(before.get("lastTransitionTime") or now)
    wanted = evaluate(obj).condition(int(metadata.get("generation") or 0), since)
    if wanted == before:
        return None
    if wanted["status"] != before.get("status"):
        wanted["lastTransitionTime"] = now
    return wanted
