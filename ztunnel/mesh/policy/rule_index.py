# SPDX-License-Identifier: Apache-2.0
"""Compiles rules, and indexes them so that few rules are evaluated per request.

A rule is indexed by the values of one of its groups; only rules without a positive condition are
evaluated for every request. If evaluating the candidates of a policy one by one is expensive, all
its rules are evaluated at once (`rule_matrix`). So the cost of a decision is proportional to the
number of policies, however large they are.

    RequestAttributes ──IndexKey──▶ IndexValue ──table──▶ candidates by policy ──▶ first match
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ztunnel.mesh.policy.match_terms import IndexKey, IndexValue, RequestAttributes, index_entry
from ztunnel.mesh.policy.model import (
    Attribute,
    AuthorizationPolicy,
    Clause,
    MatchTerms,
    Rule,
)
from ztunnel.mesh.policy.rule_matrix import RuleMatrix

MAX_SINGLE_LOOKUPS = 8  # of the candidates of a policy, beyond which its matrix is faster

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

    __slots__ = ("groups", "lookups", "match")

    def __init__(self, policy: str, rule: Rule) -> None:
        self.match = RuleMatch(policy, rule.number)
        self.groups = [
            [[_CompiledTerms(terms) for terms in clause] for clause in g] for g in rule.groups
        ]
        every = (terms for group in self.groups for clause in group for terms in clause)
        self.lookups = 1 + sum(len(terms.values) + len(terms.excluded) for terms in every)

    def matches(self, attributes: RequestAttributes) -> bool:
        """Return whether every group has a clause whose terms all match."""
        return all(
            any(all(test.holds(attributes) for test in clause) for clause in group)
            for group in self.groups
        )


class _Candidates:
    """Rules of one policy, by number, and what evaluating each of them costs."""

    __slots__ = ("lookups", "rules")

    def __init__(self) -> None:
        self.rules: dict[int, CompiledRule] = {}
        self.lookups = 0

    def add(self, rule: CompiledRule) -> None:
        if rule.match.number not in self.rules:
            self.rules[rule.match.number] = rule
            self.lookups += rule.lookups


_ByPolicy = dict[str, _Candidates]


class RuleIndex:
    """The rules of all policies with the same action and the same selection."""

    def __init__(self) -> None:
        self.policies: dict[str, AuthorizationPolicy] = {}  # by key
        self._tables: dict[IndexKey, dict[IndexValue, _ByPolicy]] = {}
        self._always_evaluated: _ByPolicy = {}
        self._matrices: dict[str, RuleMatrix] = {}  # by policy, created when first needed
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
                self._always_evaluated.setdefault(policy.key, _Candidates()).add(compiled)
            for key, value in entries or ():
                by_policy = self._tables.setdefault(key, {}).setdefault(value, {})
                by_policy.setdefault(policy.key, _Candidates()).add(compiled)

    def discard(self, policy: AuthorizationPolicy) -> None:
        """Remove a policy; it must be the value that was added."""
        self.policies.pop(policy.key, None)
        self._first_policy = ""
        self._matrices.pop(policy.key, None)
        self._always_evaluated.pop(policy.key, None)
        for _, entries in _rules_with_entries(policy):
            for key, value in entries or ():
                self._remove_entry(key, value, policy.key)

    def first(self, attributes: RequestAttributes) -> RuleMatch | None:
        """Return the first matching rule by policy and number."""
        candidates = self._candidates(attributes)
        for policy in sorted(candidates) if len(candidates) > 1 else candidates:
            number = self._first_of(policy, candidates[policy], attributes)
            if number is not None:
                return RuleMatch(policy, number)
        return None

    def _first_of(
        self, policy: str, candidates: list[_Candidates], attributes: RequestAttributes
    ) -> int | None:
        if sum(each.lookups for each in candidates) <= MAX_SINGLE_LOOKUPS:
            if len(candidates) == 1 and len(candidates[0].rules) == 1:  # almost always
                (rule,) = candidates[0].rules.values()
                return rule.match.number if rule.matches(attributes) else None
            rules = {number: rule for each in candidates for number, rule in each.rules.items()}
            matching = (number for number in sorted(rules) if rules[number].matches(attributes))
            return next(matching, None)
        matrix = self._matrices.get(policy)
        if matrix is None:
            possible = (each for each in self.policies[policy].rules if not each.never_matches)
            matrix = self._matrices[policy] = RuleMatrix(possible)
        return matrix.first(attributes)

    def _candidates(self, attributes: RequestAttributes) -> dict[str, list[_Candidates]]:
        found = {policy: [each] for policy, each in self._always_evaluated.items()}
        for key, table in self._tables.items():
            value = key.extract(attributes)
            if value is not None:
                for policy, candidates in table.get(value, {}).items():
                    found.setdefault(policy, []).append(candidates)
        return found

    def _remove_entry(self, key: IndexKey, value: IndexValue, policy: str) -> None:
        table = self._tables.get(key, {})
        by_policy = table.get(value, {})
        by_policy.pop(policy, None)
        if not by_policy:
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
