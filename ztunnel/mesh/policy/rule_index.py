# SPDX-License-Identifier: Apache-2.0
"""Compiles rules, and indexes them so that few rules are evaluated per request.

An index key describes how to extract a value from a request (the first 20 characters of the
principal, the first 8 bits of the source address). All values of a key are in one hash table, so a
lookup among ten thousand values is one operation. A rule is indexed by the values of one of its
groups; only rules without a positive condition are evaluated for every request.

    RequestAttributes ──IndexKey──▶ IndexValue ──table──▶ candidate rules ──▶ first match
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec

from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.model import (
    ADDRESSES,
    Attribute,
    AuthorizationPolicy,
    Clause,
    MatchTerms,
    Rule,
)

IndexValue = str | int | bool
_BITS = {4: 32, 6: 128}


class AuthzRequest(msgspec.Struct, frozen=True, gc=False):
    """The input of an authorization. `identity` is the peer's SPIFFE ID, empty without mTLS."""

    source_ip: str
    identity: str
    destination: SocketAddress


class RequestAttributes:
    """The attributes of a request that rules match, parsed once."""

    __slots__ = ("addresses", "port", "texts")

    def __init__(self, request: AuthzRequest) -> None:
        principal = request.identity.removeprefix("spiffe://")
        _, _, rest = principal.partition("/ns/")
        namespace, _, account = rest.partition("/sa/")
        self.texts = {
            Attribute.PRINCIPAL: principal,
            Attribute.NAMESPACE: namespace,
            Attribute.ACCOUNT: f"{namespace}/{account}" if account else "",
        }
        self.addresses = {
            Attribute.SOURCE_IP: _parse_ip(request.source_ip),
            Attribute.DESTINATION_IP: _parse_ip(request.destination.ip),
        }
        self.port = request.destination.port


class MatchKind(IntEnum):
    """How a key extracts its value, ordered by selectivity, most selective first."""

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
    kind: MatchKind
    length: int = 0

    def extract(self, attributes: RequestAttributes) -> IndexValue | None:
        """Return the value of a request for this key; None if it has none."""
        attribute, kind, length = self
        if kind is MatchKind.PORT:
            return attributes.port
        if kind is MatchKind.NET4 or kind is MatchKind.NET6:
            family, number = attributes.addresses[attribute]
            bits = 32 if kind is MatchKind.NET4 else 128
            return number >> (bits - length) if _BITS.get(family) == bits else None
        text = attributes.texts[attribute]
        if not text:
            return None
        if kind is MatchKind.EXACT:
            return text
        if kind is MatchKind.PRESENT:
            return True
        return text[:length] if kind is MatchKind.PREFIX else text[-length:]


def index_entry(attribute: Attribute, value: str) -> tuple[IndexKey, IndexValue]:
    """Return the index entry of a term value. Raises ValueError for an invalid CIDR or port."""
    if attribute is Attribute.DESTINATION_PORT:
        return IndexKey(attribute, MatchKind.PORT), int(value)
    if attribute in ADDRESSES:
        network = ip_network(value)
        kind, bits = (MatchKind.NET4, 32) if network.version == 4 else (MatchKind.NET6, 128)
        prefix = int(network.network_address) >> (bits - network.prefixlen)
        return IndexKey(attribute, kind, network.prefixlen), prefix
    if value == "*":
        return IndexKey(attribute, MatchKind.PRESENT), True
    if value.endswith("*"):
        return IndexKey(attribute, MatchKind.PREFIX, len(value) - 1), value[:-1]
    if value.startswith("*"):
        return IndexKey(attribute, MatchKind.SUFFIX, len(value) - 1), value[1:]
    return IndexKey(attribute, MatchKind.EXACT), value


IndexEntries = dict[IndexKey, set[IndexValue]]


def _index_entries(attribute: Attribute, values: Iterable[str]) -> IndexEntries:
    found: IndexEntries = {}
    for value in values:
        key, indexed = index_entry(attribute, value)
        found.setdefault(key, set()).add(indexed)
    return found


def _matches_any(entries: IndexEntries, attributes: RequestAttributes) -> bool:
    return any(key.extract(attributes) in values for key, values in entries.items())


class _CompiledTerms:
    """MatchTerms in indexed form."""

    __slots__ = ("excluded", "values")

    def __init__(self, terms: MatchTerms) -> None:
        self.values = _index_entries(terms.attribute, terms.values)
        self.excluded = _index_entries(terms.attribute, terms.excluded)

    def holds(self, attributes: RequestAttributes) -> bool:
        if self.values and not _matches_any(self.values, attributes):
            return False
        return not _matches_any(self.excluded, attributes)


class RuleMatch(NamedTuple):
    """A rule that matched; ordered by policy, then by rule."""

    policy: str  # AuthorizationPolicy.key
    number: int


class CompiledRule:
    """A rule that can match, with compiled terms."""

    __slots__ = ("groups", "match")

    def __init__(self, policy: str, rule: Rule) -> None:
        self.match = RuleMatch(policy, rule.number)
        self.groups = [
            [[_CompiledTerms(terms) for terms in clause] for clause in g] for g in rule.groups
        ]

    def matches(self, attributes: RequestAttributes) -> bool:
        """Return whether every group has a clause whose terms all match."""
        return all(
            any(all(test.holds(attributes) for test in clause) for clause in group)
            for group in self.groups
        )


class RuleIndex:
    """The rules of all policies with the same action and the same selection."""

    def __init__(self) -> None:
        self.policies: dict[str, AuthorizationPolicy] = {}  # by key
        self._tables: dict[IndexKey, dict[IndexValue, dict[RuleMatch, CompiledRule]]] = {}
        self._always_evaluated: dict[RuleMatch, CompiledRule] = {}
        self._first_policy = ""

    def __len__(self) -> int:
        return len(self.policies)

    @property
    def first_policy(self) -> str:
        """The key of the first policy by name; empty if there is none."""
        if not self._first_policy:
            self._first_policy = min(self.policies, default="")
        return self._first_policy

    def add(self, policy: AuthorizationPolicy) -> None:
        """Add a policy that is not in the index."""
        self.policies[policy.key] = policy
        self._first_policy = ""
        for rule, entries in _rules_with_entries(policy):
            compiled = CompiledRule(policy.key, rule)
            if entries is None:
                self._always_evaluated[compiled.match] = compiled
            for key, value in entries or ():
                self._tables.setdefault(key, {}).setdefault(value, {})[compiled.match] = compiled

    def discard(self, policy: AuthorizationPolicy) -> None:
        """Remove a policy; it must be the value that was added."""
        self.policies.pop(policy.key, None)
        self._first_policy = ""
        for rule, entries in _rules_with_entries(policy):
            match = RuleMatch(policy.key, rule.number)
            self._always_evaluated.pop(match, None)
            for key, value in entries or ():
                self._remove_entry(key, value, match)

    def first(self, attributes: RequestAttributes) -> RuleMatch | None:
        """Return the first matching rule by policy and number."""
        return min(
            (rule.match for rule in self._candidates(attributes) if rule.matches(attributes)),
            default=None,
        )

    def _candidates(self, attributes: RequestAttributes) -> Iterator[CompiledRule]:
        yield from self._always_evaluated.values()
        for key, table in self._tables.items():
            value = key.extract(attributes)
            if value is not None:
                yield from table.get(value, {}).values()

    def _remove_entry(self, key: IndexKey, value: IndexValue, match: RuleMatch) -> None:
        table = self._tables.get(key, {})
        rules = table.get(value, {})
        rules.pop(match, None)
        if not rules:
            table.pop(value, None)
        if not table:
            self._tables.pop(key, None)


_EntryList = list[tuple[IndexKey, IndexValue]]


def _rules_with_entries(policy: AuthorizationPolicy) -> Iterator[tuple[Rule, _EntryList | None]]:
    """Yield each rule that can match with its index entries; None: not indexable."""
    for rule in policy.rules:
        if not rule.never_matches:
            candidates = [_group_entries(group) for group in rule.groups]
            found: list[_EntryList] = [entries for entries in candidates if entries]
            yield rule, min(found, key=_selectivity) if found else None


def _group_entries(group: tuple[Clause, ...]) -> _EntryList:
    """Return the index entries of a group; empty if a clause has no positive term."""
    found: _EntryList = []
    for clause in group:
        options: list[_EntryList] = [
            [index_entry(terms.attribute, value) for value in terms.values]
            for terms in clause
            if terms.values
        ]
        if not options:
            return []
        best: _EntryList = min(options, key=_selectivity)
        found += best
    return found


def _selectivity(entries: Iterable[tuple[IndexKey, IndexValue]]) -> tuple[int, int, int]:
    """Return a sort key: entries that fewer rules are likely to share come first."""
    keys = [key for key, _ in entries]
    worst = max(key.kind for key in keys)
    by_namespace = any(key.attribute is Attribute.NAMESPACE for key in keys)
    return worst, by_namespace, -min(key.length for key in keys)


@lru_cache(maxsize=4096)
def _parse_ip(ip: str) -> tuple[int, int]:
    """Return family and integer of a canonical address; family 0 if it is not an address."""
    try:
        address = ip_address(ip)
    except ValueError:
        return 0, 0
    return address.version, int(address)
