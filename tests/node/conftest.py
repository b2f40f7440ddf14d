# SPDX-License-Identifier: Apache-2.0
"""One cluster with two real nodes for all tests here, with the mesh installed by `ztctl`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.node import cluster_dns, images
from tests.node.border_workloads import create_workloads
from tests.node.cluster_fixture import Nodes
from tests.node.node_config import PAUSE
from tests.node.objects import IMAGE, NEXT
from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import ROOT, assets
from ztunnel.datapath.requirements import cgroup2_root
from ztunnel.kube.constants import NAMESPACE

PROGRAMS = ("kubelet", "kube-proxy", "coredns")  # not part of the binaries of envtest
TIMEOUT_S = 100.0  # seconds for kubelets
Ztctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two Ready nodes with all images. The thread enters the netns of the control plane."""
    binaries = assets()
    missing = [name for name in PROGRAMS if not (binaries / name).exists()]
    if missing:
        pytest.skip(f"{binaries} has no {missing[0]}; unset KUBEBUILDER_ASSETS to build one")
    directory = tmp_path_factory.mktemp("nodes")
    archives = directory / "images"
    archives.mkdir()
    pause, dns = archives / "pause.tar", archives / "coredns.tar"
    images.archive(pause, PAUSE, images.BUSYBOX, ["sleep", "2147483647"])
    images.archive(dns, cluster_dns.IMAGE, binaries / "coredns", ["coredns"])
    built = subprocess.run(
        [ROOT / "scripts/node-image"], stdout=subprocess.PIPE, text=True, check=True
    )
    (archives / "ztunnel.tar").symlink_to(built.stdout.splitlines()[-1])
    with Nodes(directory, binaries) as nodes:
        nodes.wait_ready(TIMEOUT_S)
        for machine in nodes.machines:
            machine.run("ctr", "-n", "k8s.io", "images", "tag", IMAGE, NEXT)
        wait_until(lambda: nodes.server.try_kubectl("get", "sa", "default").returncode == 0)
        yield nodes


@pytest.fixture(scope="package")
def ztctl(cluster: Nodes) -> Ztctl:
    """Run `ztctl ARGUMENTS...` against the cluster; it must exit with `code`.

    Uses the credentials of the administrator, unless `login` is set.
    """

    def run(
        *arguments: str, timeout: float = TIMEOUT_S, login: Path | None = None, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        words = [str(Path(sys.executable).with_name("ztctl")), *arguments]
        done = subprocess.run(
            [*words, "--kubeconfig", str(login or cluster.server.admin_kubeconfig)],
            env={"PATH": os.environ["PATH"], "HOME": str(cluster.directory)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, (
            f"{words}: {done.stdout}{done.stderr}\n{cluster.diagnostics()}"
        )
        return done

    return run


@pytest.fixture(scope="package")
def border(mesh: Nodes) -> Nodes:
    """The mesh, with pods and services inside and outside it."""
    create_workloads(mesh, TIMEOUT_S)
    return mesh


@pytest.fixture(scope="package")
def mesh(cluster: Nodes, ztctl: Ztctl) -> Nodes:
    """The cluster with the mesh installed.

    Both nodes share a kernel, so each agent gets the cgroup of its node, before there are any pods.
    """
    own = cgroup2_root() / f"{cluster.prefix}-$(NODE_NAME)"
    with cluster.no_controllers():
        ztctl("install", "--image", IMAGE, "--no-wait")
        words = ("set", "env", "-n", NAMESPACE, "daemonset/ztunnel-agent", f"ZTUNNEL_CGROUP={own}")
        cluster.server.kubectl(*words)
    done = ztctl("install", "--image", IMAGE)
    assert "mesh ready" in done.stdout + done.stderr, done
    return cluster
