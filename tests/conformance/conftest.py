# SPDX-License-Identifier: Apache-2.0
"""One cluster with two real nodes, the mesh, and the CRDs of the Gateway API and of Istio."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.support.nodes import cluster_dns, images
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.cluster_setup import Ztctl, built, install_mesh, run_ztctl, running_cluster
from tests.support.nodes.objects import ENVOY_IMAGE

# of base/manifests.yaml and of the tests' own manifests
ECHO_BASIC = [
    f"registry.k8s.io/gateway-api/echo-basic:{tag}"
    for tag in ("v1.5.1", "v1.6.0-dev.2", "v1.6.0-dev.3")
]


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory of the suite, of istioctl, and of their files."""
    return built("scripts/conformance-programs")


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Nodes]:
    """Two Ready nodes with cluster DNS. The thread enters the netns of the control plane."""
    echo = tmp_path_factory.mktemp("images") / "echo.tar"
    files = {
        "bin/client": programs / "client",
        "cert.crt": programs / "cert.crt",
        "cert.key": programs / "cert.key",
    }
    images.archive(echo, images_of(programs / "mesh.yaml"), programs / "server", ["server"], files)
    basic = echo.with_name("echo-basic.tar")
    images.archive(basic, ECHO_BASIC, programs / "echo-basic", ["echo-basic"])
    more = (echo, basic, built("scripts/node-image", "envoy"))
    with running_cluster(tmp_path_factory.mktemp("nodes"), more) as nodes:
        yield nodes


@pytest.fixture(scope="package")
def ztctl(cluster: Nodes) -> Ztctl:
    """Run `ztctl ARGUMENTS...` against the cluster: see `run_ztctl`."""
    return partial(run_ztctl, cluster)


@pytest.fixture(scope="package")
def mesh(cluster: Nodes, programs: Path) -> Nodes:
    """The cluster with the mesh installed, and the CRDs that users of waypoints install."""
    crds = ("apply", "--server-side", "-f", str(programs / "gateway-api-crds"))
    cluster.server.kubectl(*crds, "-f", str(programs / "istio-crds.yaml"))
    cluster.server.apply(*cluster_dns.objects())
    install_mesh(cluster, "--proxy-image", ENVOY_IMAGE)
    return cluster


def images_of(manifests: Path) -> list[str]:
    """The names that the Deployments of the suite's manifests use."""
    found = {
        container["image"]
        for document in yaml.safe_load_all(manifests.read_text())
        if document and document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
    }
    return sorted(found)
