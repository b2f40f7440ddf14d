# SPDX-License-Identifier: Apache-2.0
"""A lab with a waypoint, shared by the tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.waypoint import shop
from tests.lab.waypoint.traffic import Shop
from ztunnel.lab import Lab


@pytest.fixture(scope="module")
def waypoint_shop() -> Iterator[Shop]:
    """Two nodes with the objects of `shop.py`; tests restore what they change."""
    lab = Lab(f"w{os.getpid() % 100000}")
    try:
        assert lab.up([]) == []
        assert lab.apply(*shop.shop()) == []
        yield Shop(lab)
    finally:
        lab.down()
