# SPDX-License-Identifier: Apache-2.0
"""Authorizes a connection to a workload and states which policy decided. Pure.

    to a listener port of an ingress gateway      ─▶ allowed: its Envoy enforces policy
    plaintext, and PeerAuthentication is STRICT   ─▶ denied
    too many policies select the workload         ─▶ denied
    a DENY policy matches                         ─▶ denied
    no ALLOW policy selects the workload          ─▶ allowed
    an ALLOW policy matches                       ─▶ allowed
    otherwise                                     ─▶ denied

Policies in dry run do not decide; the decision reports what they would have changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from ztunnel.mesh.model import Workload
from ztunnel.mesh.policy.match_terms import AuthzRequest, RequestAttributes
from ztunnel.mesh.policy.model import (
    Action,
    AuthorizationPolicy,
    Level,
    MtlsMode,
    PeerAuthentication,
    Policy,
    Selection,
)
from ztunnel.mesh.policy.rule_index import RuleIndex, RuleMatch
from ztunnel.mesh.policy.selector_index import SelectorIndex

_MODE_CACHE_SIZE = 4096  # workloads
# Different selectors of policies that match one workload. Each costs about 5 µs per connection, on
# a worker that serves all pods of the node. With more, connections to the workload are denied.
MAX_SELECTORS_PER_WORKLOAD = 256


class PolicyChange(Protocol):
    """A change of policies: complete new values, and the keys of removed ones."""

    @property
    def policies(self) -> Sequence[Policy]: ...
    @property
    def removed_policies(self) -> Sequence[str]: ...


class Cause(StrEnum):
    """The step of the evaluation that decided."""

    UNRESTRICTED = "no ALLOW policy selects the workload"
    ALLOWED = "allowed by a rule"
    DENIED = "denied by a rule"
    UNMATCHED = "no rule of any ALLOW policy matches"
    PLAINTEXT = "plaintext, where mTLS is required"
    TOO_MANY = "too many policies"
    GATEWAY = "listener port of a gateway, whose Envoy enforces policy"
    OVERDUE = "not authorized again after a change"


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of an authorization.

    `policy` is the key of the deciding policy, empty if none; `rule` is the index of its rule, -1
    if none. `reason` is a complete sentence. `dry_run` states what policies in dry run would have
    changed.
    """

    allowed: bool
    cause: Cause
    reason: str
    policy: str = ""
    rule: int = -1
    dry_run: str = ""


UNRESTRICTED = Decision(True, Cause.UNRESTRICTED, Cause.UNRESTRICTED.value)
AT_GATEWAY = Decision(True, Cause.GATEWAY, Cause.GATEWAY.value)


@dataclass(frozen=True, slots=True)
class EffectiveMode:
    """Whether plaintext is accepted, and the key of the deciding policy (empty: the default)."""

    mode: MtlsMode = MtlsMode.PERMISSIVE
    policy: str = ""


@dataclass(frozen=True, slots=True)
class MtlsModes:
    """The mTLS modes of a workload: per port, and for all other ports."""

    general: EffectiveMode
    ports: dict[int, EffectiveMode]

    def at(self, port: int) -> EffectiveMode:
        """Return the mode of a port."""
        return self.ports.get(port, self.general)


class _Rules:
    """The authorization policies of one selection."""

    def __init__(self) -> None:
        self.enforced = {action: RuleIndex() for action in Action}
        self.dry = {action: RuleIndex() for action in Action}

    def index(self, policy: AuthorizationPolicy) -> RuleIndex:
        return (self.dry if policy.dry_run else self.enforced)[policy.action]

    @property
    def is_empty(self) -> bool:
        return not any((*self.enforced.values(), *self.dry.values()))


class PolicyEngine:
    """All policies of the mesh, indexed. The cost of a change is proportional to the change."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._rules: SelectorIndex[_Rules] = SelectorIndex(_Rules)
        self._peers: SelectorIndex[dict[str, PeerAuthentication]] = SelectorIndex(dict)
        self._modes: dict[str, tuple[Workload, MtlsModes]] = {}

    def __len__(self) -> int:
        return len(self._policies)

    def __iter__(self) -> Iterator[Policy]:
        return iter(self._policies.values())

    def get(self, key: str) -> Policy | None:
        """Return a policy by its key."""
        return self._policies.get(key)

    def apply(self, change: PolicyChange) -> None:
        """Apply a change: removals first."""
        for key in change.removed_policies:
            self.remove(key)
        for policy in change.policies:
            self.put(policy)

    def put(self, policy: Policy) -> None:
        """Add a policy, or replace the one with the same key."""
        self.remove(policy.key)
        self._policies[policy.key] = policy
        if isinstance(policy, PeerAuthentication):
            self._peers.group(policy.selection)[policy.key] = policy
            self._modes.clear()
        elif not policy.ignored:
            for selection in _distinct_selections(policy):
                self._rules.group(selection).index(policy).add(policy)

    def remove(self, key: str) -> None:
        """Remove a policy, if present."""
        policy = self._policies.pop(key, None)
        if policy is None:
            return
        if isinstance(policy, PeerAuthentication):
            group = self._peers.group(policy.selection)
            group.pop(key, None)
            if not group:
                self._peers.remove(policy.selection)
            self._modes.clear()
        elif not policy.ignored:
            for selection in _distinct_selections(policy):
                rules = self._rules.group(selection)
                rules.index(policy).discard(policy)
                if rules.is_empty:
                    self._rules.remove(selection)

    def applying(self, workload: Workload) -> list[Policy]:
        """Return the policies that select the workload, including dry run, ordered by key."""
        found: dict[str, Policy] = {}
        for rules in self._rules.matching(workload):
            for index in (*rules.enforced.values(), *rules.dry.values()):
                found.update(index.policies)
        for group in self._peers.matching(workload):
            found.update(group)
        return [found[key] for key in sorted(found)]

    def modes(self, workload: Workload) -> MtlsModes:
        """Return the mTLS modes of a workload."""
        known = self._modes.get(workload.uid)
        if known is not None and known[0] is workload:
            return known[1]
        modes = _modes(
            [peer for group in self._peers.matching(workload) for peer in group.values()]
        )
        if len(self._modes) >= _MODE_CACHE_SIZE:
            self._modes.clear()
        self._modes[workload.uid] = workload, modes
        return modes

    def allows_any_source(self, workload: Workload) -> bool:
        """Return whether no policy can deny any source on any port of the workload."""
        modes = self.modes(workload)
        known = (modes.general, *modes.ports.values())
        return not self._rules.matching(workload) and all(
            each.mode is not MtlsMode.STRICT for each in known
        )

    def decide(self, workload: Workload, request: AuthzRequest) -> Decision:
        """Decide whether the connection to the workload is allowed."""
        if not self._policies:
            return UNRESTRICTED
        port = request.destination.port
        if workload.gateway_ports and workload.is_gateway_port(port, udp=request.udp):
            return AT_GATEWAY
        return self._authorize(workload, request)

    def _authorize(self, workload: Workload, request: AuthzRequest) -> Decision:
        if not request.identity:
            mode = self.modes(workload).at(request.destination.port)
            if mode.mode is MtlsMode.STRICT:
                reason = f"{Cause.PLAINTEXT}: {display_name(mode.policy)} is STRICT"
                return Decision(False, Cause.PLAINTEXT, reason, mode.policy)
        groups = self._rules.matching(workload)
        if not groups:
            return UNRESTRICTED
        if len(groups) > MAX_SELECTORS_PER_WORKLOAD:
            return _too_many(len(groups))
        attributes = RequestAttributes(request)
        deny = [group.enforced[Action.DENY] for group in groups]
        allow = [group.enforced[Action.ALLOW] for group in groups]
        decision = _evaluate(deny, allow, attributes)
        dry_deny = [group.dry[Action.DENY] for group in groups]
        dry_allow = [group.dry[Action.ALLOW] for group in groups]
        if not any((*dry_deny, *dry_allow)):
            return decision
        would = _evaluate(deny + dry_deny, allow + dry_allow, attributes)
        if would.allowed == decision.allowed:
            return decision
        return replace(decision, dry_run=would.reason)


def _too_many(count: int) -> Decision:
    limit = f"{count} different selectors of policies match it, limit {MAX_SELECTORS_PER_WORKLOAD}"
    return Decision(False, Cause.TOO_MANY, f"{Cause.TOO_MANY}: {limit}")


def _evaluate(
    deny: list[RuleIndex], allow: list[RuleIndex], attributes: RequestAttributes
) -> Decision:
    match = _first(deny, attributes)
    if match is not None:
        reason = f"denied by {display_name(match.policy)}, rules[{match.number}]"
        return Decision(False, Cause.DENIED, reason, match.policy, match.number)
    count = sum(map(len, allow))
    if not count:
        return UNRESTRICTED
    match = _first(allow, attributes)
    if match is not None:
        reason = f"allowed by {display_name(match.policy)}, rules[{match.number}]"
        return Decision(True, Cause.ALLOWED, reason, match.policy, match.number)
    first = min(index.first_policy for index in allow if index)
    others = f" and {count - 1} more" if count > 1 else ""
    reason = f"no rule of the ALLOW policies matches: {display_name(first)}{others}"
    return Decision(False, Cause.UNMATCHED, reason, first)


def _first(indexes: list[RuleIndex], attributes: RequestAttributes) -> RuleMatch | None:
    return min(
        (hit for index in indexes if index and (hit := index.first(attributes))), default=None
    )


def _modes(peers: list[PeerAuthentication]) -> MtlsModes:
    """Return the effective modes: workload before namespace before mesh, per level by rank."""
    levels = [
        min(
            (peer for peer in peers if peer.level is level),
            key=lambda peer: peer.rank,
            default=None,
        )
        for level in Level
    ]
    general = EffectiveMode()
    for peer in levels:
        if peer is not None and peer.mode is not MtlsMode.UNSET:
            general = EffectiveMode(peer.mode, peer.key)
            break
    narrowest = levels[0]
    ports = {} if narrowest is None else narrowest.ports
    return MtlsModes(
        general,
        {
            port: EffectiveMode(mode, narrowest.key)
            for port, mode in ports.items()
            if mode is not MtlsMode.UNSET and narrowest is not None
        },
    )


def display_name(key: str) -> str:
    """Format a policy key for messages: `AuthorizationPolicy shop/deny-all`."""
    return key.replace("/", " ", 1)


def _distinct_selections(policy: AuthorizationPolicy) -> list[Selection]:
    """Return the distinct selections: a policy is in the index of a group once."""
    found: list[Selection] = []
    for selection in policy.selections:
        if selection not in found:
            found.append(selection)
    return found
