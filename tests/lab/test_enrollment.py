# SPDX-License-Identifier: Apache-2.0
"""Enrollment by labels, and what enrolled and unenrolled pods observe of each other."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import pytest

from tests.lab.helpers.harness import addresses, client, enrolled, named, python_pod
from tests.support.waiting import wait_until
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.lab import Lab

MODE = "istio.io/dataplane-mode"


def _is_enrolled(lab: Lab, ip: str, wanted: bool) -> bool:
    return (ip in enrolled(lab, "node1")) is wanted


@pytest.mark.parametrize("family", [4, 6])
def test_enrolled_and_unenrolled_pods_exchange_plaintext_in_both_directions(
    lab: Lab, family: int
) -> None:
    outside, inside = addresses(lab, "server", "plain")[family], addresses(lab, "server")[family]
    assert client(lab, "client", "echo", outside, 7000, "out") == {"said": "out"}
    assert client(lab, "client", "echo", inside, 7000, "in", namespace="plain") == {"said": "in"}


@pytest.mark.parametrize("family", [4, 6])
def test_plaintext_between_mesh_and_outside_preserves_addresses(lab: Lab, family: int) -> None:
    outside, inside = addresses(lab, "server", "plain")[family], addresses(lab, "server")[family]
    for target, namespace in ((outside, "default"), (inside, "plain")):
        said = client(lab, "client", "names", target, 7001, namespace=namespace)
        mine = addresses(lab, "client", namespace)[family]
        assert said["client"]["getpeername"] == [target, 7001]
        assert said["server"]["accept"][0].removeprefix("::ffff:") == mine


def test_unenrolled_pods_reach_services(lab: Lab) -> None:
    argv = ("curl", "-sS", "--max-time", "10", "http://my-app.default")
    done = lab.exec("client", *argv, namespace="plain")
    assert "Welcome to nginx" in done.stdout, done.stderr


def test_label_takes_effect_within_a_second_without_a_restart(lab: Lab) -> None:
    mine = addresses(lab, "client", "plain")[4]
    assert mine not in enrolled(lab, "node1")
    for value, wanted in (("ambient", True), (None, False)):
        started = time.monotonic()
        lab.label("pod", "client", {MODE: value}, namespace="plain")
        changed = time.monotonic()
        wait_until(functools.partial(_is_enrolled, lab, mine, wanted), "the change", timeout_s=5)
        assert time.monotonic() - changed < 1.0, f"{value}: label call {changed - started:.2f} s"
        target = addresses(lab, "server")[4]
        said = client(lab, "client", "echo", target, 7000, "x", namespace="plain")
        assert said == {"said": "x"}


def test_namespace_label_enrolls_and_none_opts_out(lab: Lab) -> None:
    mine = addresses(lab, "client", "plain")[4]
    other = addresses(lab, "server", "plain")[4]
    lab.label("pod", "server", {MODE: "none"}, namespace="plain")
    lab.label("namespace", "plain", {MODE: "ambient"})
    try:
        wait_until(lambda: mine in enrolled(lab, "node1"), "the namespace to be enrolled")
        assert other not in enrolled(lab, "node2")
        said = client(lab, "client", "echo", other, 7000, "x", namespace="plain")
        assert said == {"said": "x"}
    finally:
        lab.label("namespace", "plain", {MODE: None})
        lab.label("pod", "server", {MODE: None}, namespace="plain")
        wait_until(lambda: mine not in enrolled(lab, "node1"), "the namespace to be released")


@pytest.fixture
def special(lab: Lab) -> Iterator[Lab]:
    """An ambient namespace with a sidecar pod and a host-network pod."""
    sidecar = python_pod(
        "sidecar",
        "node1",
        namespace="mixed",
        script="server.py",
        annotations={"sidecar.istio.io/status": '{"containers":["istio-proxy"]}'},
    )
    host = python_pod("host", "node1", namespace="mixed")
    host["spec"]["hostNetwork"] = True
    lab.apply(named("Namespace", "mixed", **{MODE: "ambient"}), sidecar, host)
    yield lab
    lab.delete("namespace", "mixed")


def test_sidecar_and_host_network_pods_are_never_captured(special: Lab) -> None:
    lab = special
    before = enrolled(lab, "node1")
    sidecar = addresses(lab, "sidecar", "mixed")[4]
    node = {each["ip"] for each in lab.pod("host", "mixed")["status"]["podIPs"]}
    assert sidecar not in before
    assert not node & before
    assert client(lab, "client", "echo", sidecar, 7000, "mixed") == {"said": "mixed"}
    lab.label("pod", "sidecar", {MODE: "ambient"}, namespace="mixed")
    lab.label("pod", "host", {MODE: "ambient"}, namespace="mixed")
    assert client(lab, "client", "echo", sidecar, 7000, "still") == {"said": "still"}
    assert not {sidecar, *node} & enrolled(lab, "node1")


def test_probe_from_a_node_address_reaches_the_app_directly(lab: Lab) -> None:
    for family in (4, 6):
        target = addresses(lab, "server")[family]
        before = _node_connections(lab)
        script = f"exec 3<>/dev/tcp/{target}/7001; cat <&3"
        done = lab.node_exec("node2", "bash", "-c", script)
        assert '"accept"' in done.stdout, done.stderr
        assert _node_connections(lab) == before + 1


def _node_connections(lab: Lab) -> int:
    maps = Maps(lab.names.pin_dir("node2"), read_only=True)
    try:
        return maps.stats()["node_local_bypass"]
    finally:
        maps.close()
