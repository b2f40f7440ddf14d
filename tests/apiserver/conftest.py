# SPDX-License-Identifier: Apache-2.0
"""A real API server for the cluster tests; they need no root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver.server import ApiServer, assets


@pytest.fixture(scope="session")
def binaries() -> Path:
    """Where kube-apiserver, kubectl and etcd are."""
    return assets()


@pytest.fixture(scope="session")
def server(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One server for all tests that only use it; each makes namespaces of its own."""
    with ApiServer(tmp_path_factory.mktemp("cluster"), binaries) as made:
        yield made


@pytest.fixture
def fresh_server(binaries: Path, tmp_path: Path) -> Iterator[ApiServer]:
    """A server of a test's own, to take away, restart and compact."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    with ApiServer(directory, binaries) as made:
        yield made
