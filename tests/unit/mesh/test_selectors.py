# SPDX-License-Identifier: Apache-2.0
"""Label selectors have the semantics of Kubernetes."""

from __future__ import annotations

import pytest

from ztunnel.mesh.selectors import SelectorError, parse, selects

CASES = {
    "no selectors": ("[]", {}, True),
    "an empty selector": ("[{}]", {}, True),
    "label there": ('[{"matchLabels": {"a": "1"}}]', {"a": "1", "b": "2"}, True),
    "label with another value": ('[{"matchLabels": {"a": "1"}}]', {"a": "2"}, False),
    "label not there": ('[{"matchLabels": {"a": "1"}}]', {}, False),
    "both must hold": ('[{"matchLabels": {"a": "1", "b": "1"}}]', {"a": "1"}, False),
    "one of two is enough": (
        '[{"matchLabels": {"a": "1"}}, {"matchLabels": {"b": "1"}}]',
        {"b": "1"},
        True,
    ),
    "in": (
        '[{"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}]',
        {"a": "2"},
        True,
    ),
    "not in": (
        '[{"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}]',
        {"a": "1"},
        False,
    ),
    "not in, without the label": (
        '[{"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}]',
        {},
        True,
    ),
    "exists": ('[{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]', {"a": ""}, True),
    "does not exist": (
        '[{"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}]',
        {"a": ""},
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_selection(case: str) -> None:
    text, labels, selected = CASES[case]
    assert selects(parse(text), labels) is selected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"labels": {}}]',
        '[{"matchLabels": {"a": 1}}]',
        '[{"matchLabels": ["a"]}]',
        '[{"matchExpressions": [{"key": "a"}]}]',
        '[{"matchExpressions": [{"key": "a", "operator": "Is"}]}]',
        '[{"matchExpressions": [{"key": "a", "operator": "In"}]}]',
        '[{"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["1"]}]}]',
    ],
)
def test_invalid_selector_list_is_rejected(text: str) -> None:
    with pytest.raises(SelectorError):
        parse(text)
