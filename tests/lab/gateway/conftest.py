# SPDX-License-Identifier: Apache-2.0
"""A lab with an ingress gateway, shared by the tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.gateway import edge
from tests.lab.gateway.outside import Edge
from tests.lab.waypoint import shop
from ztunnel.lab import Lab


@pytest.fixture(scope="module")
def edge_shop() -> Iterator[Edge]:
    """Two nodes with the objects of `edge.py`; tests restore what they change."""
    lab = Lab(f"e{os.getpid() % 100000}")
    try:
        assert lab.up([]) == []
        assert lab.apply(*shop.shop()) == []
        assert lab.apply(*edge.edge()) == []
        made = Edge(lab)
        made.wait_until_served()
        yield made
    finally:
        lab.down()
