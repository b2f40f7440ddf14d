# SPDX-License-Identifier: Apache-2.0
"""Labs with an ingress gateway, shared by the tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import edge
from tests.lab.gateway import storefront as front
from tests.lab.gateway.outside import Edge
from tests.lab.gateway.storefront import Storefront
from tests.lab.waypoint import shop
from tests.support.waiting import wait_until
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


@pytest.fixture(scope="module")
def storefront(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storefront]:
    """Two nodes with the objects of `storefront.py`; tests restore what they change."""
    directory = tmp_path_factory.mktemp("authority") / "ca"
    lab = Lab(f"g{os.getpid() % 100000}")
    made = Storefront(lab, Path(directory))
    try:
        assert lab.up([]) == []
        assert lab.apply(made.certificate(), *front.objects(), front.route("v1")) == []
        wait_until(lambda: made.get(f"http://{front.HOST}/").status == 200, "the gateway")
        yield made
    finally:
        lab.down()
