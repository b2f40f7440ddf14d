# SPDX-License-Identifier: Apache-2.0
"""Envoy's messages about rejected configuration are shortened to the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.gateway.xds.rejection_text import MAX_MESSAGE_CHARS, shorten

DUMP = 'goo.gle/debugonly    \nname: "shop/web|80"\nvirtual_hosts {\n  domains: "*"\n}\n: '
ROUTE = (
    "Proto constraint validation failed (RouteConfigurationValidationError.VirtualHosts[0]: "
    "embedded message failed validation | caused by VirtualHostValidationError.Routes[3]: "
    "embedded message failed validation | caused by HeaderMatcherValidationError.Name: "
    "value length must be at least 1 characters)"
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            DUMP + ROUTE,
            "VirtualHosts[0].Routes[3].Name: value length must be at least 1 characters",
        ),
        (
            "Error adding/updating cluster(s) a|80: " + DUMP + ROUTE,
            "Error adding/updating cluster(s) a|80: "
            "VirtualHosts[0].Routes[3].Name: value length must be at least 1 characters",
        ),
        ("Only unique names are allowed", "Only unique names are allowed"),
        ("goo.gle/debugproto \n a: 1\n: unknown cluster", "a: 1 : unknown cluster"),
        ("Proto constraint validation failed (odd)", "odd"),
        (
            "Proto constraint validation failed (AValidationError.B: C is wrong (see D))",
            "B: C is wrong (see D)",
        ),
    ],
)
def test_reason_remains(message: str, expected: str) -> None:
    assert shorten(message) == expected


def test_reason_after_a_large_resource_remains() -> None:
    dump = 'goo.gle/debugonly {\n  name: "x"\n}\n' * 20_000
    assert shorten(f"{dump}: {ROUTE}").endswith("value length must be at least 1 characters")


@given(st.text(), st.sampled_from(["", DUMP, ROUTE]), st.text())
def test_any_text_is_bounded(before: str, middle: str, after: str) -> None:
    found = shorten(before + middle + after)
    assert len(found) <= MAX_MESSAGE_CHARS
    assert "\n" not in found
