# SPDX-License-Identifier: Apache-2.0
"""One cluster with two real nodes for all tests here, with the mesh installed by `ztctl`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.node.border_workloads import create_workloads
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.cluster_setup import (
    TIMEOUT_S,
    Ztctl,
    built,
    install_mesh,
    run_ztctl,
    running_cluster,
)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two Ready nodes with all images. The thread enters the netns of the control plane."""
    images = (built("scripts/node-image", "envoy"),)
    with running_cluster(tmp_path_factory.mktemp("nodes"), images) as nodes:
        yield nodes


@pytest.fixture(scope="package")
def ztctl(cluster: Nodes) -> Ztctl:
    """Run `ztctl ARGUMENTS...` against the cluster: see `run_ztctl`."""
    return partial(run_ztctl, cluster)


@pytest.fixture(scope="package")
def border(mesh: Nodes) -> Nodes:
    """The mesh, with pods and services inside and outside it."""
    create_workloads(mesh, TIMEOUT_S)
    return mesh


@pytest.fixture(scope="package")
def mesh(cluster: Nodes) -> Nodes:
    """The cluster with the mesh installed."""
    install_mesh(cluster)
    return cluster
