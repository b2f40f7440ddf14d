# SPDX-License-Identifier: Apache-2.0
"""TCP between nodes through the mesh is transparent to the apps."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest

from tests.lab.helpers.harness import addresses, client, proxy_log
from tests.support.waiting import wait_until
from ztunnel.lab import Lab

BLOCK = bytes(range(256)) * 256
GIB = 1 << 30


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_curl_by_service_name_reaches_nginx_on_the_other_node(lab: Lab, family: str) -> None:
    done = lab.exec("client", "curl", "-sS", "--max-time", "10", family, "http://my-app")
    assert done.returncode == 0, done.stderr
    assert "Welcome to nginx" in done.stdout


def test_both_proxies_log_the_connection_with_identities(lab: Lab) -> None:
    client(lab, "client", "echo", addresses(lab, "server")[4], 7000, "hello")
    source, target = "spiffe://cluster.local/ns/default/sa/default", "/ns/default/sa/server"

    def logged(node: str, direction: str) -> bool:
        return any(
            direction in line and source in line and target in line and ":15008" in line
            for line in proxy_log(lab, node).splitlines()
        )

    wait_until(lambda: logged("node1", "outbound"), "the client's proxy to log the connection")
    wait_until(lambda: logged("node2", "inbound"), "the server's proxy to log the connection")


@pytest.mark.parametrize("family", [4, 6])
def test_client_sees_the_dialed_address_and_server_sees_the_client(lab: Lab, family: int) -> None:
    mine, target = addresses(lab, "client")[family], addresses(lab, "server")[family]
    said = client(lab, "client", "names", target, 7001)
    port = said["client"]["getsockname"][1]
    assert said["client"] == {"getpeername": [target, 7001], "getsockname": [mine, port]}
    shown = mine if family == 6 else f"::ffff:{mine}"  # the server has a dual-stack socket
    assert said["server"]["accept"] == [shown, port]
    assert said["server"]["getpeername"] == [shown, port]
    assert said["server"]["getsockname"][1] == 7001


def test_v4_mapped_connect_is_captured(lab: Lab) -> None:
    mapped = f"::ffff:{addresses(lab, 'server')[4]}"
    said = client(lab, "client", "names", mapped, 7001)
    assert said["client"]["getpeername"] == [mapped, 7001]
    assert said["server"]["accept"][0] == f"::ffff:{addresses(lab, 'client')[4]}"


def test_client_may_send_fin_first(lab: Lab) -> None:
    said = client(lab, "client", "upload", addresses(lab, "server")[4], 7002, 3_000_000)
    assert said["server"] == said["sent"]


def test_server_may_send_fin_first(lab: Lab) -> None:
    said = client(lab, "client", "fin-first", addresses(lab, "server")[4], 7006, 1_234_567)
    assert said == {"first": "", "sent": 1_234_567}
    log = lab.log_paths("server", "app", "default")[0]
    wait_until(
        lambda: "fin-first 1234567" in log.read_text(encoding="utf-8"), "all bytes to arrive"
    )


def test_reset_by_the_server_reaches_the_client(lab: Lab) -> None:
    said = client(lab, "client", "poke", addresses(lab, "server")[4], 7004)
    assert said == {"end": "ECONNRESET"}


def test_reset_by_the_client_reaches_the_server(lab: Lab) -> None:
    client(lab, "client", "abort", addresses(lab, "server")[4], 7000)
    log = lab.log_paths("server", "app", "default")[0]
    wait_until(
        lambda: "Connection reset by peer" in log.read_text(encoding="utf-8"),
        "the server's app to see the reset",
    )


def test_connection_that_the_server_refuses_is_reset(lab: Lab) -> None:
    """ECONNRESET, not ECONNREFUSED: the handshake of the app is with the proxy."""
    said = client(lab, "client", "poke", addresses(lab, "server")[4], 7999)
    assert said == {"end": "ECONNRESET"}


def test_ports_of_the_proxy_are_refused_as_destinations(lab: Lab) -> None:
    said = client(lab, "client", "poke", addresses(lab, "server")[4], 15008)
    assert said == {"end": "ECONNREFUSED"}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("family", [4, 6])
def test_one_gibibyte_is_downloaded_unchanged(lab: Lab, family: int) -> None:
    target = addresses(lab, "server")[family]
    said = client(lab, "client", "download", target, 7003, GIB, timeout=200)
    expected = hashlib.sha256()
    for _ in range(GIB // len(BLOCK)):
        expected.update(BLOCK)
    assert said == {"size": GIB, "digest": expected.hexdigest()}


@pytest.mark.timeout(240)
def test_one_gibibyte_is_uploaded_unchanged(lab: Lab) -> None:
    said = client(lab, "client", "upload", addresses(lab, "server")[4], 7002, GIB, timeout=200)
    assert said["server"] == said["sent"]


def test_pods_of_one_node_reach_each_other(lab: Lab) -> None:
    for family in (4, 6):
        target = addresses(lab, "near")[family]
        assert client(lab, "client", "echo", target, 7000, "next door") == {"said": "next door"}


def test_pod_reaches_itself_by_its_own_address(lab: Lab) -> None:
    target = addresses(lab, "near")[4]
    assert client(lab, "near", "echo", target, 7000, "myself") == {"said": "myself"}


def test_connections_to_a_service_spread_over_ready_endpoints(lab: Lab) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "both", "namespace": "default"},
        "spec": {
            "selector": {"tier": "both"},
            "ports": [{"name": "who", "port": 80, "targetPort": 7001}],
        },
    }
    for pod in ("near", "server"):
        lab.label("pod", pod, {"tier": "both"})
    try:
        lab.apply(service)
        seen = {_served_by(lab, "both") for _ in range(24)}
        assert len(seen) == 2
    finally:
        lab.delete("service", "both")
        for pod in ("near", "server"):
            lab.label("pod", pod, {"tier": None})


def _served_by(lab: Lab, host: str) -> str:
    done = lab.exec("client", "bash", "-c", f"exec 3<>/dev/tcp/{host}/80; cat <&3")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["getsockname"][0])


def test_enrollment_adds_no_rule_and_no_route(lab: Lab) -> None:
    def rules() -> list[str]:
        commands = (
            ("nft", "list", "ruleset"),
            ("ip", "route", "show", "table", "all"),
            ("ip", "-6", "route", "show", "table", "all"),
            ("ip", "rule"),
            ("ip", "-6", "rule"),
            ("ip", "addr"),
            ("tc", "qdisc"),
        )
        return [
            _stable(lab.exec("client", *argv, namespace="plain", privileged=True, check=True))
            for argv in commands
        ]

    before = rules()
    lab.label("pod", "client", {"istio.io/dataplane-mode": "ambient"}, namespace="plain")
    try:
        target = addresses(lab, "server")[4]
        wait_until(lambda: _captured(lab), "the pod to be captured")
        assert client(lab, "client", "echo", target, 7000, "in", namespace="plain") == {
            "said": "in"
        }
        assert rules() == before
        assert before[0] == ""
    finally:
        lab.label("pod", "client", {"istio.io/dataplane-mode": None}, namespace="plain")
        wait_until(lambda: not _captured(lab), "the pod to be released")


def _stable(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join(line.split(" expires ")[0] for line in done.stdout.splitlines())


def _captured(lab: Lab) -> bool:
    from ztunnel.datapath.bpf.maps import Maps

    maps = Maps(lab.names.pin_dir("node1"), read_only=True)
    try:
        mine = addresses(lab, "client", "plain")[4]
        return any(mine in pod.addresses for pod in maps.pods())
    finally:
        maps.close()
