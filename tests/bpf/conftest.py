# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the BPF tests, which need root: they attach programs to a cgroup and connect."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.bpf.netns_fixture import BpfNode
from tests.bpf.stale_resources import remove_stale_resources


@pytest.fixture(autouse=True, scope="session")
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    remove_stale_resources()


@pytest.fixture(scope="module")
def node() -> Iterator[BpfNode]:
    """A node with one enrolled pod, shared by the tests of a module."""
    with BpfNode() as made:
        yield made


@pytest.fixture
def fresh_node() -> Iterator[BpfNode]:
    """A node for one test, which may break it."""
    with BpfNode() as made:
        yield made
