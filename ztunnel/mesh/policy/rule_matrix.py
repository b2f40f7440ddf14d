# SPDX-License-Identifier: Apache-2.0
"""Evaluates all rules of a policy at once, for policies with many rules that may match.

Each clause, group and rule is a bit of one large integer. The bits of a rule are consecutive, the
lowest first:

    clause clause GROUP clause GROUP RULE     from: two clauses, to: one clause

A clause's terms are looked up in hash tables, one per attribute, which yield the clauses that the
request's value does not exclude. These sets are cached per value. Adding ones below each GROUP bit
carries into it if any clause is true; the same step finds the rules without a false group. So an
evaluation costs some operations on integers of one bit per clause, not one step per rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ztunnel.mesh.policy.match_terms import IndexKey, IndexValue, RequestAttributes, index_entry
from ztunnel.mesh.policy.model import Attribute, Clause, Rule

_CACHE_SIZE = 32  # values per attribute and policy; a set of clauses has some KiB at most

_Table = dict[IndexKey, dict[IndexValue, list[int]]]


class _Slot:
    """The terms of one attribute: at most one per clause."""

    __slots__ = ("_attribute", "_cache", "_default", "_negative", "_positive", "_required")

    def __init__(self, attribute: Attribute) -> None:
        self._attribute = attribute
        self._required: list[int] = []  # clauses with a positive term
        self._positive: _Table = {}
        self._negative: _Table = {}
        self._default = b""
        self._cache: dict[object, int] = {}

    def add(self, clause: int, values: Iterable[str], excluded: Iterable[str]) -> None:
        has_values = False
        for value in values:
            has_values = True
            _add(self._positive, index_entry(self._attribute, value), clause)
        if has_values:
            self._required.append(clause)
        for value in excluded:
            _add(self._negative, index_entry(self._attribute, value), clause)

    def finish(self, clauses: bytes) -> None:
        """`clauses`: the bits of all clauses."""
        default = bytearray(clauses)
        for clause in self._required:
            default[clause >> 3] &= ~(1 << (clause & 7))
        self._default = bytes(default)

    def clauses(self, attributes: RequestAttributes) -> int:
        """Return the clauses whose term of this slot holds, and those without such a term."""
        value = attributes.value(self._attribute)
        found = self._cache.get(value)
        if found is None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            found = self._cache[value] = self._search(attributes)
        return found

    def _search(self, attributes: RequestAttributes) -> int:
        bits = bytearray(self._default)
        for clause in _lookup(self._positive, attributes):
            bits[clause >> 3] |= 1 << (clause & 7)
        for clause in _lookup(self._negative, attributes):
            bits[clause >> 3] &= ~(1 << (clause & 7))
        return int.from_bytes(bits, "little")


def _lookup(table: _Table, attributes: RequestAttributes) -> Iterator[int]:
    """Yield the clauses with a value that the request has."""
    for key, clauses in table.items():
        value = key.extract(attributes)
        if value is not None:
            yield from clauses.get(value, ())


class RuleMatrix:
    """The rules of one policy that can match."""

    __slots__ = ("_clauses", "_fill", "_groups", "_numbers", "_rule_fill", "_rules", "_slots")

    def __init__(self, rules: Iterable[Rule]) -> None:
        size = 0
        slots: dict[tuple[Attribute, int], _Slot] = {}
        clauses: list[int] = []
        groups: list[int] = []
        below: list[int] = []  # bits of a rule below its RULE bit
        self._numbers: dict[int, int] = {}  # number of the rule by its RULE bit
        for rule in sorted(rules, key=lambda each: each.number):
            start = size
            for group in rule.groups:
                for clause in group:
                    _add_clause(slots, size, clause)
                    clauses.append(size)
                    size += 1
                groups.append(size)
                size += 1
            below += range(start, size)
            self._numbers[size] = rule.number
            size += 1
        self._clauses = _number(clauses, size)
        self._fill = self._clauses
        self._groups = _number(groups, size)
        self._rules = _number(self._numbers, size)
        self._rule_fill = _number(below, size)
        self._slots = tuple(slots.values())
        every = self._clauses.to_bytes(size // 8 + 1, "little")
        for slot in self._slots:
            slot.finish(every)

    def first(self, attributes: RequestAttributes) -> int | None:
        """Return the number of the first rule that matches."""
        clauses = self._clauses
        for slot in self._slots:
            clauses &= slot.clauses(attributes)
        false_groups = self._groups ^ ((clauses + self._fill) & self._groups)
        true = self._rules ^ ((false_groups + self._rule_fill) & self._rules)
        return self._numbers[(true & -true).bit_length() - 1] if true else None


def _add_clause(slots: dict[tuple[Attribute, int], _Slot], at: int, clause: Clause) -> None:
    used: dict[Attribute, int] = {}
    for terms in clause:
        number = used[terms.attribute] = used.get(terms.attribute, -1) + 1
        name = terms.attribute, number
        if name not in slots:
            slots[name] = _Slot(terms.attribute)
        slots[name].add(at, terms.values, terms.excluded)


def _add(table: _Table, entry: tuple[IndexKey, IndexValue], clause: int) -> None:
    key, value = entry
    table.setdefault(key, {}).setdefault(value, []).append(clause)


def _number(bits: Iterable[int], size: int) -> int:
    found = bytearray(size // 8 + 1)
    for bit in bits:
        found[bit >> 3] |= 1 << (bit & 7)
    return int.from_bytes(found, "little")
