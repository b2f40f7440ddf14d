# SPDX-License-Identifier: Apache-2.0
"""Pods on one node: the proxy authorizes the first connection; later ones bypass it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.helpers.harness import APPS, addresses, client, named, python_pod
from tests.support.waiting import wait_until
from ztunnel.datapath.bpf.maps import Maps, PodCounters
from ztunnel.lab import Lab, admin_get, demo_manifests

MODE = "istio.io/dataplane-mode"


def _counters(lab: Lab, pod: str) -> PodCounters:
    maps = Maps(lab.names.pin_dir("node1"), read_only=True)
    try:
        mine = set(addresses(lab, pod).values())
        cookie = next(each.netns_cookie for each in maps.pods() if mine & set(each.addresses))
        return maps.pod_stats()[cookie]
    finally:
        maps.close()


def _echo(lab: Lab, family: int = 4, port: int = 7000) -> None:
    target = addresses(lab, "near")[family]
    assert client(lab, "client", "echo", target, port, "hi") == {"said": "hi"}


def is_bypassed(lab: Lab, family: int = 4) -> bool:
    before = _counters(lab, "client").same_node_bypass
    _echo(lab, family)
    return _counters(lab, "client").same_node_bypass > before


def wait_until_bypassed(lab: Lab, family: int = 4) -> None:
    wait_until(lambda: is_bypassed(lab, family), "the pair to bypass the proxy")


def _wait_captured(lab: Lab, pod: str, *, captured: bool = True) -> None:
    def is_captured() -> bool:
        _, answer = admin_get(lab.names, "node1", "/v1/pods")
        rows = {row["workload"]: row for row in (answer or {}).get("pods", [])}
        row = rows.get(f"default/{pod}")
        return row is not None and row["state"] == "captured" and not row["problem"]

    wait_until(lambda: is_captured() == captured, f"{pod} captured={captured}")


@contextmanager
def _labeled(lab: Lab, pod: str, mode: str) -> Iterator[None]:
    lab.label("pod", pod, {MODE: mode})
    try:
        yield
    finally:
        lab.label("pod", pod, {MODE: None})
        _wait_captured(lab, pod)


@pytest.mark.parametrize("family", [4, 6])
def test_second_connection_of_a_pair_bypasses_the_proxy_and_preserves_addresses(
    lab: Lab, family: int
) -> None:
    wait_until_bypassed(lab, family)
    before = _counters(lab, "client")
    mine, target = addresses(lab, "client")[family], addresses(lab, "near")[family]
    wait_until(
        lambda: (
            _names(lab, target)
            and _counters(lab, "client").same_node_bypass >= before.same_node_bypass + 1
        ),
        "",
    )
    said = client(lab, "client", "names", target, 7001)
    port = said["client"]["getsockname"][1]
    assert said["client"] == {"getpeername": [target, 7001], "getsockname": [mine, port]}
    shown = mine if family == 6 else f"::ffff:{mine}"
    assert said["server"]["accept"] == [shown, port]
    assert said["server"]["getpeername"] == [shown, port]


def _names(lab: Lab, target: str) -> bool:
    client(lab, "client", "names", target, 7001)
    return True


def test_bypass_applies_to_one_port_only(lab: Lab) -> None:
    wait_until_bypassed(lab)
    before = _counters(lab, "client")
    said = client(lab, "client", "poke", addresses(lab, "near")[4], 7998)
    assert said == {"end": "ECONNRESET"}
    after = _counters(lab, "client")
    assert (after.same_node_bypass, after.redirected) == (
        before.same_node_bypass,
        before.redirected + 1,
    )


def test_bypassed_connections_are_logged_and_listed(lab: Lab) -> None:
    wait_until_bypassed(lab)
    target = addresses(lab, "near")[4]
    held = lab.popen("client", sys.executable, str(APPS / "client.py"), "hold", target, "7000")
    assert held.stdin is not None
    assert held.stdout is not None
    try:
        assert held.stdout.readline() == b"connected\n"
        _, answer = admin_get(lab.names, "node1", "/v1/connections")
        rows = [row for row in answer["connections"] if row.get("same_node")]
        assert [row["destination"]["address"] for row in rows] == [f"{target}:7000"]
        assert rows[0]["source"]["workload"] == "client"
        held.stdin.write(b"0123456789\n")
        held.stdin.flush()
        assert held.stdout.readline() == b"0123456789\n"
    finally:
        held.stdin.close()
        held.wait(10)
        held.stdout.close()
    log = lab.log_paths("node1", "agent", "default")[0]

    def logged() -> bool:
        return any(
            "same_node=True" in line
            and f"dst.addr={target}:7000" in line
            and "src.identity=spiffe://cluster.local/ns/default/sa/default" in line
            and "bytes_sent=11" in line
            and "bytes_recv=11" in line
            for line in log.read_text(encoding="utf-8").splitlines()
        )

    wait_until(logged, "the agent to log the connection")


def test_unenrollment_and_enrollment_end_the_bypass_within_a_second(lab: Lab) -> None:
    wait_until_bypassed(lab)
    with _labeled(lab, "near", "none"):
        start = time.monotonic()
        wait_until(lambda: not is_bypassed(lab), "no more verdicts")
        assert time.monotonic() - start < 1.5  # a second, and the start of the client
    assert not is_bypassed(lab)  # enrollment requires a new authorization
    wait_until_bypassed(lab)


def test_connection_opened_before_enrollment_is_terminated_by_it(lab: Lab) -> None:
    wait_until_bypassed(lab)
    target = addresses(lab, "near")[4]
    held = lab.popen("client", sys.executable, str(APPS / "client.py"), "hold", target, "7000")
    assert held.stdin is not None
    assert held.stdout is not None
    assert held.stdout.readline() == b"connected\n"
    with _labeled(lab, "client", "none"):
        _wait_captured(lab, "client", captured=False)
        held.stdin.write(b"still here\n")
        held.stdin.flush()
        assert held.stdout.readline() == b"still here\n"
    held.stdin.write(b"and now\n")
    held.stdin.flush()
    assert held.wait(10) != 0  # ECONNABORTED ends the client
    held.stdin.close()
    held.stdout.close()


def test_without_the_proxy_authorized_pairs_are_refused(lab: Lab) -> None:
    wait_until_bypassed(lab)
    target = addresses(lab, "near")[4]
    lab.kill("node1", "proxy")
    try:
        assert client(lab, "client", "poke", target, 7000) == {"end": "ECONNREFUSED"}
    finally:
        lab.start("node1", "proxy")
    wait_until(lambda: client(lab, "client", "poke", target, 7000) == {"end": "data"}, "service")
    wait_until_bypassed(lab)


def test_without_agent_and_proxy_authorized_pairs_are_refused(lab: Lab) -> None:
    """Nothing revokes the bypass; sk_lookup at the destination finds no proxy listener."""
    wait_until_bypassed(lab)
    target = addresses(lab, "near")[4]
    lab.kill("node1", "agent")
    lab.kill("node1", "proxy")
    try:
        assert client(lab, "client", "poke", target, 7000) == {"end": "ECONNREFUSED"}
    finally:
        lab.start("node1", "proxy")
        lab.start("node1", "agent")
    wait_until(lambda: client(lab, "client", "poke", target, 7000) == {"end": "data"}, "service")


def test_bypass_expires_without_the_agent_and_traffic_continues(lab: Lab) -> None:
    wait_until_bypassed(lab)
    lab.kill("node1", "agent")
    try:
        wait_until(lambda: not is_bypassed(lab), "the lease to end", timeout_s=8)
    finally:
        lab.start("node1", "agent")
    wait_until_bypassed(lab)


def test_encrypt_mode_never_bypasses_the_proxy() -> None:
    lab = Lab(f"e{os.getpid() % 100000}", nodes=1, agent_options=("--same-node", "encrypt"))
    objects = [
        named("ServiceAccount", "server", "default"),
        python_pod("near", "node1", script="server.py"),
    ]
    try:
        assert lab.up([demo_manifests()]) == []
        assert lab.apply(*objects) == []
        _wait_captured(lab, "near")
        for _ in range(3):
            _echo(lab)
        assert _counters(lab, "client").same_node_bypass == 0
        _, status = admin_get(lab.names, "node1", "/v1/status")
        assert status["same_node"]["mode"] == "encrypt"
        assert status["same_node"]["bypass_entries"] == 0
        assert status["same_node"]["reports_rejected"] >= 1
    finally:
        lab.down()
