# SPDX-License-Identifier: Apache-2.0
"""From nothing to a mesh on real nodes: for the fixtures of tests/node and tests/conformance."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import ROOT, assets
from tests.support.nodes import cluster_dns, images
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.node_config import PAUSE
from tests.support.nodes.objects import IMAGE, NEXT
from ztunnel.datapath.requirements import cgroup2_root
from ztunnel.kube.constants import NAMESPACE

PROGRAMS = ("kubelet", "kube-proxy", "coredns")  # not part of the binaries of envtest
TIMEOUT_S = 240.0  # seconds for kubelets, whose containerd unpacks images of 500 MB
Ztctl = Callable[..., subprocess.CompletedProcess[str]]


def built(*argv: str) -> Path:
    """The path that a script of this project prints after it has built something."""
    done = subprocess.run(
        [ROOT / argv[0], *argv[1:]], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.splitlines()[-1])


@contextmanager
def running_cluster(directory: Path, more_images: Sequence[Path] = ()) -> Iterator[Nodes]:
    """Two Ready nodes with all images. The thread enters the netns of the control plane.

    `more_images`: OCI archives that the nodes import too.
    """
    binaries = assets()
    missing = [name for name in PROGRAMS if not (binaries / name).exists()]
    if missing:
        pytest.skip(f"{binaries} has no {missing[0]}; unset KUBEBUILDER_ASSETS to build one")
    archives = directory / "images"
    archives.mkdir()
    images.archive(archives / "pause.tar", PAUSE, images.BUSYBOX, ["sleep", "2147483647"])
    images.archive(archives / "coredns.tar", cluster_dns.IMAGES, binaries / "coredns", ["coredns"])
    for archive in (built("scripts/node-image"), *more_images):
        (archives / archive.name).symlink_to(archive)
    with Nodes(directory, binaries) as nodes:
        nodes.wait_ready(TIMEOUT_S)
        for machine in nodes.machines:
            machine.run("ctr", "-n", "k8s.io", "images", "tag", IMAGE, NEXT)
        wait_until(lambda: nodes.server.try_kubectl("get", "sa", "default").returncode == 0)
        yield nodes


def run_ztctl(
    cluster: Nodes,
    *arguments: str,
    timeout: float = TIMEOUT_S,
    login: Path | None = None,
    code: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run `ztctl ARGUMENTS...` against the cluster; it must exit with `code`.

    Uses the credentials of the administrator, unless `login` is set.
    """
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
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}\n{cluster.diagnostics()}"
    return done


def install_mesh(cluster: Nodes, *options: str) -> None:
    """Install the mesh with `ztctl install OPTIONS...`, and wait until it is ready.

    Both nodes share a kernel, so each agent gets the cgroup of its node, before there are any pods.
    """
    own = cgroup2_root() / f"{cluster.prefix}-$(NODE_NAME)"
    install = ("install", "--image", IMAGE, *options)
    with cluster.no_controllers():
        run_ztctl(cluster, *install, "--no-wait")
        words = ("set", "env", "-n", NAMESPACE, "daemonset/ztunnel-agent", f"ZTUNNEL_CGROUP={own}")
        cluster.server.kubectl(*words)
    done = run_ztctl(cluster, *install)
    assert "mesh ready" in done.stdout + done.stderr, done
