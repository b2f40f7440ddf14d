# SPDX-License-Identifier: Apache-2.0
"""Kubernetes label selectors, as used by `discoverySelectors`. Pure.

Semantics: metav1.LabelSelector of apimachinery. All requirements of a selector must hold; one
matching selector of several is sufficient.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class SelectorError(ValueError):
    """The text is not a list of label selectors."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label; `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels match. NotIn also matches a missing label."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case _:
                return value is None


Selector = tuple[Requirement, ...]


def selects(selectors: Sequence[Selector], labels: Mapping[str, str]) -> bool:
    """Return whether one of the selectors matches; an empty list matches everything."""
    return not selectors or any(
        all(requirement.holds(labels) for requirement in selector) for selector in selectors
    )


def parse(text: str) -> tuple[Selector, ...]:
    """Parse a JSON list of LabelSelectors. Raises SelectorError."""
    try:
        found = json.loads(text)
        if not isinstance(found, list):
            raise TypeError("expected a list")
        return tuple(tuple(_requirements(each)) for each in found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SelectorError(f"not a JSON list of label selectors: {error}") from error


def from_object(value: Any) -> Selector:
    """Return one LabelSelector that was decoded already. Raises SelectorError."""
    try:
        return tuple(_requirements(value))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SelectorError(f"not a label selector: {error}") from error


def _requirements(selector: Any) -> Iterator[Requirement]:
    unknown = selector.keys() - {"matchLabels", "matchExpressions"}
    if unknown:
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    for key, value in (selector.get("matchLabels") or {}).items():
        yield Requirement(key, "In", frozenset([_text(value)]))
    for expression in selector.get("matchExpressions") or []:
        operator, values = expression["operator"], expression.get("values") or []
        if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            raise ValueError(f"unknown operator {operator!r}")
        if (operator in ("In", "NotIn")) != bool(values):
            raise ValueError(f"{operator} with the values {values}")
        yield Requirement(
            _text(expression["key"]), operator, frozenset(_text(each) for each in values)
        )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value
