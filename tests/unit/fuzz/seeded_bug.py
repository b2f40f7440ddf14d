# SPDX-License-Identifier: Apache-2.0
"""A target with a bug, which the harness must find."""

from __future__ import annotations

from tests.fuzz.target import Target, separated


def check(octets: bytes) -> None:
    assert octets.count(b",again") < 3, "planted"


TARGET = Target(check, seeds=(b"one,again",), mutate=separated(b",", [b"again"]))
