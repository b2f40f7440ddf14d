# SPDX-License-Identifier: Apache-2.0
"""May this connection come in to that workload, and what decided: a pure function of the policies.

    plaintext, and PeerAuthentication says STRICT ─▶ denied
    a DENY policy matches                         ─▶ denied
    no ALLOW policy selects the workload          ─▶ allowed
    an ALLOW policy matches                       ─▶ allowed
    else                                          ─▶ denied

Policies in dry run decide nothing; what they would have changed is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from ztunnel.mesh.model import Workload
from ztunnel.mesh.policy.model import (
    Action,
    AuthorizationPolicy,
    Level,
    MtlsMode,
    PeerAuthentication,
    Policy,
    Selection,
)
from ztunnel.mesh.policy.rule_index import Asked, RequestAttributes, RuleIndex, RuleMatch
from ztunnel.mesh.policy.selector_index import Groups

_REMEMBERED = 4096  # workloads whose mode is worked out


class Change(Protocol):
    """Whole new policies, and the keys of what is gone."""

    @property
    def policies(self) -> Sequence[Policy]: ...
    @property
    def removed_policies(self) -> Sequence[str]: ...


class Cause(StrEnum):
    """Which step decided."""

    UNRESTRICTED = "no ALLOW policy selects the workload"
    ALLOWED = "allowed by a rule"
    DENIED = "denied by a rule"
    UNMATCHED = "no rule of any ALLOW policy matches"
    PLAINTEXT = "plaintext, where mTLS is required"


@dataclass(frozen=True, slots=True)
class Decision:
    """`policy` is the key of the one that decided, empty when none did; `rule` its number, -1 when
    none. `reason` is the whole in words. `dry_run`: what policies in dry run would have changed."""

    allowed: bool
    cause: Cause
    reason: str
    policy: str = ""
    rule: int = -1
    dry_run: str = ""


UNRESTRICTED = Decision(True, Cause.UNRESTRICTED, Cause.UNRESTRICTED.value)


@dataclass(frozen=True, slots=True)
class EffectiveMode:
    """Whether plaintext is let in, and which policy says so (key, empty for the default)."""

    mode: MtlsMode = MtlsMode.PERMISSIVE
    policy: str = ""


@dataclass(frozen=True, slots=True)
class MtlsModes:
    """Those of a workload: by port, and for all other ports."""

    general: EffectiveMode
    ports: dict[int, EffectiveMode]

    def at(self, port: int) -> EffectiveMode:
        """That of a port."""
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


class Policies:
    """All policies of the mesh, indexed. A change costs what it changes."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._rules: Groups[_Rules] = Groups(_Rules)
        self._peers: Groups[dict[str, PeerAuthentication]] = Groups(dict)
        self._modes: dict[str, tuple[Workload, MtlsModes]] = {}

    def __len__(self) -> int:
        return len(self._policies)

    def __iter__(self) -> Iterator[Policy]:
        return iter(self._policies.values())

    def get(self, key: str) -> Policy | None:
        """A policy by its key."""
        return self._policies.get(key)

    def apply(self, change: Change) -> None:
        """Take in a change: removals first."""
        for key in change.removed_policies:
            self.remove(key)
        for policy in change.policies:
            self.put(policy)

    def put(self, policy: Policy) -> None:
        """Take in a policy, new or in place of the one of the same key."""
        self.remove(policy.key)
        self._policies[policy.key] = policy
        if isinstance(policy, PeerAuthentication):
            self._peers.at(policy.selection)[policy.key] = policy
            self._modes.clear()
        elif not policy.ignored:
            for selection in _distinct(policy):
                self._rules.at(selection).index(policy).add(policy)

    def remove(self, key: str) -> None:
        """Forget a policy, if it is there."""
        policy = self._policies.pop(key, None)
        if policy is None:
            return
        if isinstance(policy, PeerAuthentication):
            group = self._peers.at(policy.selection)
            group.pop(key, None)
            if not group:
                self._peers.forget(policy.selection)
            self._modes.clear()
        elif not policy.ignored:
            for selection in _distinct(policy):
                rules = self._rules.at(selection)
                rules.index(policy).discard(policy)
                if rules.is_empty:
                    self._rules.forget(selection)

    def applying(self, workload: Workload) -> list[Policy]:
        """Those that select the workload, in dry run too, by key."""
        found: dict[str, Policy] = {}
        for rules in self._rules.of(workload):
            for index in (*rules.enforced.values(), *rules.dry.values()):
                found.update(index.policies)
        for group in self._peers.of(workload):
            found.update(group)
        return [found[key] for key in sorted(found)]

    def modes(self, workload: Workload) -> MtlsModes:
        """Where a workload lets plaintext in."""
        known = self._modes.get(workload.uid)
        if known is not None and known[0] is workload:
            return known[1]
        modes = _modes([peer for group in self._peers.of(workload) for peer in group.values()])
        if len(self._modes) >= _REMEMBERED:
            self._modes.clear()
        self._modes[workload.uid] = workload, modes
        return modes

    def admits_all(self, workload: Workload) -> bool:
        """Whether no policy could keep anybody out, whoever asks for whatever port."""
        modes = self.modes(workload)
        known = (modes.general, *modes.ports.values())
        return not self._rules.of(workload) and all(
            one.mode is not MtlsMode.STRICT for one in known
        )

    def decide(self, workload: Workload, asked: Asked) -> Decision:
        """Whether the connection may come in to the workload."""
        if not self._policies:
            return UNRESTRICTED
        if not asked.identity:
            mode = self.modes(workload).at(asked.destination.port)
            if mode.mode is MtlsMode.STRICT:
                reason = f"{Cause.PLAINTEXT}: {named(mode.policy)} is STRICT"
                return Decision(False, Cause.PLAINTEXT, reason, mode.policy)
        groups = self._rules.of(workload)
        if not groups:
            return UNRESTRICTED
        facts = RequestAttributes(asked)
        deny = [group.enforced[Action.DENY] for group in groups]
        allow = [group.enforced[Action.ALLOW] for group in groups]
        decision = _evaluate(deny, allow, facts)
        dry_deny = [group.dry[Action.DENY] for group in groups]
        dry_allow = [group.dry[Action.ALLOW] for group in groups]
        if not any((*dry_deny, *dry_allow)):
            return decision
        would = _evaluate(deny + dry_deny, allow + dry_allow, facts)
        if would.allowed == decision.allowed:
            return decision
        return replace(decision, dry_run=would.reason)


def _evaluate(deny: list[RuleIndex], allow: list[RuleIndex], facts: RequestAttributes) -> Decision:
    hit = _first(deny, facts)
    if hit is not None:
        reason = f"denied by {named(hit.policy)}, rules[{hit.number}]"
        return Decision(False, Cause.DENIED, reason, hit.policy, hit.number)
    count = sum(map(len, allow))
    if not count:
        return UNRESTRICTED
    hit = _first(allow, facts)
    if hit is not None:
        reason = f"allowed by {named(hit.policy)}, rules[{hit.number}]"
        return Decision(True, Cause.ALLOWED, reason, hit.policy, hit.number)
    first = min(index.first_policy for index in allow if index)
    others = f" and {count - 1} more" if count > 1 else ""
    reason = f"no rule of the ALLOW policies matches: {named(first)}{others}"
    return Decision(False, Cause.UNMATCHED, reason, first)


def _first(indexes: list[RuleIndex], facts: RequestAttributes) -> RuleMatch | None:
    return min((hit for index in indexes if index and (hit := index.first(facts))), default=None)


def _modes(peers: list[PeerAuthentication]) -> MtlsModes:
    """Workload before namespace before mesh; of each level the first by rank."""
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


def named(key: str) -> str:
    """A policy's key as people say it: `AuthorizationPolicy shop/deny-all`."""
    return key.replace("/", " ", 1)


def _distinct(policy: AuthorizationPolicy) -> list[Selection]:
    """Its selections, each once: it is in a group's index once, so it leaves it once."""
    found: list[Selection] = []
    for selection in policy.selections:
        if selection not in found:
            found.append(selection)
    return found
