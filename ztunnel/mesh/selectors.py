# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' label selectors, as `discoverySelectors` has them: pure.

Semantics: apimachinery's metav1.LabelSelector. All requirements of a selector hold; one selector
of several is enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class SelectorError(ValueError):
    """A text that is no list of label selectors."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label; `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """NotIn holds for what lacks the label, too."""
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
    """Whether one of the selectors fits; no selectors at all select everything."""
    return not selectors or any(
        all(requirement.holds(labels) for requirement in selector) for selector in selectors
    )


def parse(text: str) -> tuple[Selector, ...]:
    """A JSON list of LabelSelectors. Raises SelectorError."""
    try:
        found = json.loads(text)
        if not isinstance(found, list):
            raise TypeError("a list was expected")
        return tuple(tuple(_requirements(each)) for each in found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SelectorError(f"no JSON list of label selectors: {error}") from error


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
        raise TypeError(f"{value!r} is no text")
    return value
