# SPDX-License-Identifier: Apache-2.0
"""A waypoint with a real Envoy is attached and detached at 200 requests/s."""

from __future__ import annotations

import time

import pytest

from tests.lab.waypoint import shop
from tests.lab.waypoint.traffic import Shop
from tests.support.waiting import wait_until

USE_WAYPOINT = "istio.io/use-waypoint"
CYCLES = 4
EFFECTIVE_S = 1.0  # until a change applies to new connections


@pytest.mark.parametrize("options", [[], ["--new"]], ids=["kept-alive", "new"])
def test_attaching_and_detaching_fails_no_request(waypoint_shop: Shop, options: list[str]) -> None:
    made = waypoint_shop
    to_v2 = shop.route({"backendRefs": [shop.backend("v2")]})
    assert made.lab.apply(to_v2, wait=False) == []
    wait_until(lambda: made.get("buyer-far").version == "v2", "the route applies")
    detached: list[tuple[float, float]] = []
    attached: list[tuple[float, float]] = []
    with made.load("buyer-far", *options) as result:
        for waypoint, times in [(None, detached), (shop.WAYPOINT, attached)] * CYCLES:
            made.lab.label("Service", "my-app", {USE_WAYPOINT: waypoint}, shop.SHOP)
            changed_at = time.time()
            time.sleep(EFFECTIVE_S + 0.5)
            times.append((changed_at + EFFECTIVE_S, time.time()))
    print(f"\n{options}: {len(result.failed)} of {len(result.requests)} requests failed")
    assert result.failed == []
    if options:
        assert all(result.versions(*each) == {"v2"} for each in attached)
        assert all(result.versions(*each) == {"v1", "v2"} for each in detached)
