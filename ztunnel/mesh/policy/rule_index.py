# SPDX-License-Identifier: Apache-2.0
"""Rules made quick: what they ask of a connection, and an index of those that may match one.

A value is a *needle* in a *slot*: the slot says how to cut the needle out of a connection (the
first 20 characters of the principal, the first 8 bits of the source), so that all values of a slot
are one set, and looking for any of ten thousand costs one look. A rule is filed under the needles
of one of its groups; only rules that name nothing positively have to be tried each time.

    Facts ──slot──▶ needle ∈ {needle: rules} ──▶ the few rules to try ──▶ the first that matches
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec

from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.model import ADDRESSES, Attribute, AuthorizationPolicy, Clause, Rule, Terms

IndexValue = str | int | bool
_BITS = {4: 32, 6: 128}


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A connection that wants in: from where, who it proved to be (a SPIFFE id, empty when it
    proved nothing), and to what."""

    source_ip: str
    identity: str
    destination: SocketAddress


class RequestAttributes:
    """What rules may ask about a connection, taken apart once."""

    __slots__ = ("addresses", "port", "texts")

    def __init__(self, asked: Asked) -> None:
        principal = asked.identity.removeprefix("spiffe://")
        _, _, rest = principal.partition("/ns/")
        namespace, _, account = rest.partition("/sa/")
        self.texts = {
            Attribute.PRINCIPAL: principal,
            Attribute.NAMESPACE: namespace,
            Attribute.ACCOUNT: f"{namespace}/{account}" if account else "",
        }
        self.addresses = {
            Attribute.SOURCE_IP: _number(asked.source_ip),
            Attribute.DESTINATION_IP: _number(asked.destination.ip),
        }
        self.port = asked.destination.port


class MatchKind(IntEnum):
    """How a slot takes its needle; in order of how few rules one needle is likely to have."""

    EXACT = 0
    NET4 = 1
    NET6 = 2
    PREFIX = 3
    SUFFIX = 4
    PORT = 5
    PRESENT = 6


class IndexKey(NamedTuple):
    """`length` in characters of a prefix or suffix, in bits of a network."""

    attribute: Attribute
    cut: MatchKind
    length: int = 0

    def needle(self, facts: RequestAttributes) -> IndexValue | None:
        """What this connection has in the slot; None when nothing."""
        attribute, cut, length = self
        if cut is MatchKind.PORT:
            return facts.port
        if cut is MatchKind.NET4 or cut is MatchKind.NET6:
            family, number = facts.addresses[attribute]
            bits = 32 if cut is MatchKind.NET4 else 128
            return number >> (bits - length) if _BITS.get(family) == bits else None
        text = facts.texts[attribute]
        if not text:
            return None
        if cut is MatchKind.EXACT:
            return text
        if cut is MatchKind.PRESENT:
            return True
        return text[:length] if cut is MatchKind.PREFIX else text[-length:]


def place(attribute: Attribute, value: str) -> tuple[IndexKey, IndexValue]:
    """Where a term's value belongs. Raises ValueError for what is no network and no port."""
    if attribute is Attribute.DESTINATION_PORT:
        return IndexKey(attribute, MatchKind.PORT), int(value)
    if attribute in ADDRESSES:
        network = ip_network(value)
        cut, bits = (MatchKind.NET4, 32) if network.version == 4 else (MatchKind.NET6, 128)
        needle = int(network.network_address) >> (bits - network.prefixlen)
        return IndexKey(attribute, cut, network.prefixlen), needle
    if value == "*":
        return IndexKey(attribute, MatchKind.PRESENT), True
    if value.endswith("*"):
        return IndexKey(attribute, MatchKind.PREFIX, len(value) - 1), value[:-1]
    if value.startswith("*"):
        return IndexKey(attribute, MatchKind.SUFFIX, len(value) - 1), value[1:]
    return IndexKey(attribute, MatchKind.EXACT), value


Places = dict[IndexKey, set[IndexValue]]


def _places(attribute: Attribute, values: Iterable[str]) -> Places:
    found: Places = {}
    for value in values:
        slot, needle = place(attribute, value)
        found.setdefault(slot, set()).add(needle)
    return found


def _holds(places: Places, facts: RequestAttributes) -> bool:
    return any(slot.needle(facts) in needles for slot, needles in places.items())


class _Test:
    """Terms, compiled."""

    __slots__ = ("excluded", "values")

    def __init__(self, terms: Terms) -> None:
        self.values = _places(terms.attribute, terms.values)
        self.excluded = _places(terms.attribute, terms.excluded)

    def holds(self, facts: RequestAttributes) -> bool:
        if self.values and not _holds(self.values, facts):
            return False
        return not _holds(self.excluded, facts)


class RuleMatch(NamedTuple):
    """A rule that matched; hits are ordered by policy, then by rule."""

    policy: str  # AuthorizationPolicy.key
    number: int


class CompiledRule:
    """A rule that can match something."""

    __slots__ = ("groups", "hit")

    def __init__(self, policy: str, rule: Rule) -> None:
        self.hit = RuleMatch(policy, rule.number)
        self.groups = [[[_Test(terms) for terms in clause] for clause in g] for g in rule.groups]

    def matches(self, facts: RequestAttributes) -> bool:
        """Every group has a clause whose terms all hold."""
        return all(
            any(all(test.holds(facts) for test in clause) for clause in group)
            for group in self.groups
        )


class RuleIndex:
    """The rules of the policies that do the same thing to the same workloads."""

    def __init__(self) -> None:
        self.policies: dict[str, AuthorizationPolicy] = {}  # by key
        self._slots: dict[IndexKey, dict[IndexValue, dict[RuleMatch, CompiledRule]]] = {}
        self._always_tried: dict[RuleMatch, CompiledRule] = {}
        self._first_policy = ""

    def __len__(self) -> int:
        return len(self.policies)

    @property
    def first_policy(self) -> str:
        """The first by name; empty when there is none."""
        if not self._first_policy:
            self._first_policy = min(self.policies, default="")
        return self._first_policy

    def add(self, policy: AuthorizationPolicy) -> None:
        """Take in a policy that is not there."""
        self.policies[policy.key] = policy
        self._first_policy = ""
        for rule, filing in _filed(policy):
            compiled = CompiledRule(policy.key, rule)
            if filing is None:
                self._always_tried[compiled.hit] = compiled
            for slot, needle in filing or ():
                self._slots.setdefault(slot, {}).setdefault(needle, {})[compiled.hit] = compiled

    def discard(self, policy: AuthorizationPolicy) -> None:
        """Take out a policy, the very value that was added."""
        self.policies.pop(policy.key, None)
        self._first_policy = ""
        for rule, filing in _filed(policy):
            hit = RuleMatch(policy.key, rule.number)
            self._always_tried.pop(hit, None)
            for slot, needle in filing or ():
                self._unfile(slot, needle, hit)

    def first(self, facts: RequestAttributes) -> RuleMatch | None:
        """The first rule by policy and number that matches."""
        return min(
            (rule.hit for rule in self._candidates(facts) if rule.matches(facts)), default=None
        )

    def _candidates(self, facts: RequestAttributes) -> Iterator[CompiledRule]:
        yield from self._always_tried.values()
        for slot, table in self._slots.items():
            needle = slot.needle(facts)
            if needle is not None:
                yield from table.get(needle, {}).values()

    def _unfile(self, slot: IndexKey, needle: IndexValue, hit: RuleMatch) -> None:
        table = self._slots.get(slot, {})
        rules = table.get(needle, {})
        rules.pop(hit, None)
        if not rules:
            table.pop(needle, None)
        if not table:
            self._slots.pop(slot, None)


_Filing = list[tuple[IndexKey, IndexValue]]


def _filed(policy: AuthorizationPolicy) -> Iterator[tuple[Rule, _Filing | None]]:
    """Each rule that may match, with where it is to be found; None: anywhere."""
    for rule in policy.rules:
        if not rule.never:
            filings = [_group_filing(group) for group in rule.groups]
            found: list[_Filing] = [filing for filing in filings if filing]
            yield rule, min(found, key=_coarseness) if found else None


def _group_filing(group: tuple[Clause, ...]) -> _Filing:
    """One way to find a rule by a group of it: each clause must say something positive; else
    there is none."""
    found: _Filing = []
    for clause in group:
        ways: list[_Filing] = [
            [place(terms.attribute, value) for value in terms.values]
            for terms in clause
            if terms.values
        ]
        if not ways:
            return []
        best: _Filing = min(ways, key=_coarseness)
        found += best
    return found


def _coarseness(filing: Iterable[tuple[IndexKey, IndexValue]]) -> tuple[int, int, int]:
    """How many rules are likely to share its needles: less is better."""
    slots = [slot for slot, _ in filing]
    worst = max(slot.cut for slot in slots)
    by_namespace = any(slot.attribute is Attribute.NAMESPACE for slot in slots)
    return worst, by_namespace, -min(slot.length for slot in slots)


@lru_cache(maxsize=4096)
def _number(ip: str) -> tuple[int, int]:
    """Family and number of a canonical address; family 0 when it is none."""
    try:
        address = ip_address(ip)
    except ValueError:
        return 0, 0
    return address.version, int(address)
