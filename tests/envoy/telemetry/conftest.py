# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of telemetry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.waypoint.envoy import validate
from tests.support.waypoint.world import World
from ztunnel.l7.config import Json
from ztunnel.l7.names import WAYPOINT_LISTENER, TypeUrl


@pytest.fixture(scope="module")
def envoy_accepts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Json]], None]:
    """Validates access loggers with Envoy, as those of one chain."""
    directory: Path = tmp_path_factory.mktemp("envoy")

    def check(loggers: list[Json]) -> None:
        world = World()
        world.service("web")
        config = world.compile()
        listener = config.resources[TypeUrl.LISTENER][WAYPOINT_LISTENER]
        listener["filter_chains"][0]["filters"][-1]["typed_config"]["access_log"] = loggers
        validate(config, directory)

    return check
