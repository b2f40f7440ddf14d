# SPDX-License-Identifier: Apache-2.0
"""DNS of pods in a cluster: the resolv.conf of the kubelet, CoreDNS, and DNS capture."""

from __future__ import annotations

import urllib.request
from functools import partial

import pytest

from tests.lab.helpers.scrape import Page
from tests.node.border_workloads import INSIDE, OUTSIDE, cluster_ip
from tests.support.apiserver.control_plane import wait_until
from tests.support.nodes import cluster_dns
from tests.support.nodes.cluster_fixture import SERVICE, Nodes
from tests.support.nodes.cluster_setup import TIMEOUT_S
from tests.support.nodes.node_config import CLUSTER_DNS, CLUSTER_DOMAIN
from tests.support.nodes.objects import GREETING
from tests.support.nodes.pods import ask, run_in

SIDES = (INSIDE, OUTSIDE)
_RESOLVE = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def named(border: Nodes) -> Nodes:
    """The cluster with a ready DNS that knows the workloads."""
    border.server.apply(*cluster_dns.objects())
    words = ("-n", cluster_dns.SPACE, "rollout", "status", "deployment", cluster_dns.NAME)
    wait_until(
        lambda: border.server.try_kubectl(*words, "--timeout=50s").returncode == 0, "CoreDNS"
    )
    known = partial(ask, border, OUTSIDE, "client", f"far.{INSIDE}")
    wait_until(lambda: known() == GREETING, "names are known", timeout_s=TIMEOUT_S)
    return border


@pytest.mark.parametrize("here", SIDES)
def test_pods_use_the_dns_server_that_the_kubelet_configures(named: Nodes, here: str) -> None:
    domains = (f"{here}.svc.{CLUSTER_DOMAIN}", f"svc.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN)
    reported = run_in(named, here, "client", "cat", "/etc/resolv.conf").splitlines()
    wanted = ["search " + " ".join(domains), f"nameserver {CLUSTER_DNS}", "options ndots:5"]
    assert sorted(reported) == sorted(wanted)


@pytest.mark.parametrize("there", SIDES)
@pytest.mark.parametrize("here", SIDES)
def test_services_resolve_inside_and_outside_the_mesh(named: Nodes, here: str, there: str) -> None:
    address = cluster_ip(named, there, "far")
    names = [f"far.{there}", f"far.{there}.svc", f"far.{there}.svc.{CLUSTER_DOMAIN}."]
    for name in [*names, "far"] if here == there else names:
        assert _resolved(named, here, name) == address, name
    assert ask(named, here, "client", f"far.{there}") == GREETING


@pytest.mark.parametrize("here", SIDES)
def test_other_names_are_answered_by_the_cluster_dns(named: Nodes, here: str) -> None:
    assert _resolved(named, here, "kubernetes.default") == SERVICE
    assert _resolved(named, here, cluster_dns.ELSEWHERE) == cluster_dns.ADDRESS


def test_queries_of_enrolled_pods_are_answered_or_forwarded_by_the_mesh(named: Nodes) -> None:
    before = _counted(named)
    assert _resolved(named, INSIDE, f"far.{INSIDE}")
    assert _resolved(named, INSIDE, cluster_dns.ELSEWHERE)
    for outcome in ("mesh", "forwarded"):
        wait_until(partial(_has_grown, named, before, outcome), f"{outcome} is counted")


def _has_grown(cluster: Nodes, before: dict[str, float], outcome: str) -> bool:
    return _counted(cluster).get(outcome, 0) > before.get(outcome, 0)


def _resolved(cluster: Nodes, space: str, name: str) -> str:
    return run_in(cluster, space, "client", "python3", "-c", _RESOLVE, name)


def _counted(cluster: Nodes) -> dict[str, float]:
    """Queries on the node of the clients that the mesh captured, by result."""
    url = f"http://{cluster.machines[0].address}:15020/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        page = Page(answer.read().decode())
    found: dict[str, float] = {}
    for sample in page.matching("ztunnel_dns_queries_total"):
        outcome = sample.labels["outcome"]
        found[outcome] = found.get(outcome, 0) + sample.value
    return found
