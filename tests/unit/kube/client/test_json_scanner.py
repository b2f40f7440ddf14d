# SPDX-License-Identifier: Apache-2.0
"""The scanner finds the same elements as a decoder."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.kube.client import json_scanner

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(values) | st.dictionaries(st.text(), values), st.sampled_from([None, 2]))
def test_elements_are_those_of_a_decoder(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()
    span = 0, len(text)
    if isinstance(value, dict):
        found = json_scanner.members(text, span)
        assert {key: json.loads(text[slice(*each)]) for key, each in found.items()} == value
    else:
        spans = json_scanner.elements(text, span)
        assert [json.loads(text[slice(*each)]) for each in spans] == value


def test_nesting_of_any_depth_is_one_element() -> None:
    text = b'{"a": 1, "deep": ' + b'[{"a":' * 100_000 + b"0" + b"}]" * 100_000 + b', "b": "]"}'
    found = json_scanner.members(text, (0, len(text)))
    assert list(found) == ["a", "deep", "b"]
    assert text[slice(*found["b"])] == b'"]"'


@pytest.mark.parametrize("text", [b"", b"1", b'"[]"', b"[", b'{"a": [1}', b'["a', b"[1, [2]"])
def test_other_text_is_an_error(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        json_scanner.members(text, (0, len(text)))
