# SPDX-License-Identifier: Apache-2.0
"""Kernel tests need root: they attach real programs to a real cgroup and dial."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.bpf.netns_fixture import Pocket
from tests.bpf.stale_resources import tidy


@pytest.fixture(autouse=True, scope="session")
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tidy()


@pytest.fixture(scope="module")
def pocket() -> Iterator[Pocket]:
    """A node with one enrolled pod, shared by a module's tests."""
    with Pocket() as made:
        yield made


@pytest.fixture
def fresh_pocket() -> Iterator[Pocket]:
    """A node of a test's own, to break."""
    with Pocket() as made:
        yield made
