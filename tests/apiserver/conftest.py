# SPDX-License-Identifier: Apache-2.0
"""A real API server for the tests; root is not required."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apiserver.server import ApiServer, assets


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The directory of kube-apiserver, kubectl and etcd."""
    return assets()


@pytest.fixture(scope="session")
def server(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One server for the tests that do not stop it; each uses its own namespaces."""
    with ApiServer(tmp_path_factory.mktemp("cluster"), binaries) as made:
        yield made


@pytest.fixture
def fresh_server(binaries: Path, tmp_path: Path) -> Iterator[ApiServer]:
    """A server for one test, which may stop, restart and compact it."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    with ApiServer(directory, binaries) as made:
        yield made
