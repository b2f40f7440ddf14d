# SPDX-License-Identifier: Apache-2.0
"""UDP between pods on two nodes: TLS on the wire, original addresses for the apps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.helpers.harness import addresses, proxy_log
from tests.lab.traffic.test_wire import _lines, capture
from tests.lab.traffic.udp_lab import (
    CONNECTED,
    COUNT,
    ECHO,
    WHOAMI,
    WHOAMI_DUAL,
    udp_client,
    udp_servers,
)
from tests.support.waiting import wait_until
from ztunnel.lab import Lab

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def udp(lab: Lab) -> Iterator[Lab]:
    with udp_servers(lab) as made:
        yield made


@FAMILIES
def test_datagrams_between_nodes_are_encrypted(udp: Lab, tmp_path: Path, family: int) -> None:
    token = secrets.token_hex(32)
    mine, target = addresses(udp, "client")[family], addresses(udp, "udp-far")[family]
    pcap = tmp_path / "wire.pcap"
    with capture(udp, pcap):
        said = udp_client(udp, "echo", target, ECHO, token)
        wait_until(lambda: _lines(pcap, "tcp", "and", "port", "15008"), "packets to be written")
    assert said == {"said": token, "source": [target, ECHO]}
    assert token.encode() not in pcap.read_bytes()
    between = ("host", mine, "and", "host", target)
    assert _lines(pcap, *between, "and", "tcp", "port", "15008")
    assert _lines(pcap, *between, "and", "not", "tcp", "port", "15008") == []


def test_udp_to_unenrolled_pods_is_plaintext(udp: Lab, tmp_path: Path) -> None:
    """Also a control: the same capture shows a token that is not encrypted."""
    token = secrets.token_hex(32)
    target = addresses(udp, "udp-far", "plain")[4]
    pcap = tmp_path / "wire.pcap"
    with capture(udp, pcap):
        assert udp_client(udp, "echo", target, ECHO, token)["said"] == token
        wait_until(lambda: token.encode() in pcap.read_bytes(), "the token to be captured")


def test_unenrolled_pods_reach_pods_of_the_mesh_by_udp(udp: Lab) -> None:
    target, mine = addresses(udp, "udp-far")[4], addresses(udp, "client", "plain")[4]
    said = udp_client(udp, "names", target, WHOAMI, namespace="plain")
    assert said["server"][0] == mine


@FAMILIES
@pytest.mark.parametrize("port", [WHOAMI, WHOAMI_DUAL])
def test_client_and_server_see_the_original_addresses(udp: Lab, port: int, family: int) -> None:
    mine, target = addresses(udp, "client")[family], addresses(udp, "udp-far")[family]
    said = udp_client(udp, "names", target, port)
    shown = f"::ffff:{mine}" if (port, family) == (WHOAMI_DUAL, 4) else mine
    assert said["getpeername"] == said["source"] == [target, port]
    assert said["getsockname"][0] == mine
    assert said["server"] == [shown, said["getsockname"][1]]


def test_v4_mapped_destinations_are_captured(udp: Lab) -> None:
    mapped = f"::ffff:{addresses(udp, 'udp-far')[4]}"
    assert udp_client(udp, "echo", mapped, ECHO, "hello") == {
        "said": "hello",
        "source": [mapped, ECHO],
    }
    said = udp_client(udp, "names", mapped, WHOAMI)
    assert said["server"][0] == addresses(udp, "client")[4]
    assert said["getpeername"] == [mapped, WHOAMI]


@FAMILIES
def test_one_socket_reaches_destinations_inside_and_outside_the_mesh(udp: Lab, family: int) -> None:
    pods = [("udp-far", "default"), ("udp-far2", "default"), ("udp-near", "default")]
    targets = [addresses(udp, *pod)[family] for pod in [*pods, ("udp-far", "plain"), pods[0]]]
    said = udp_client(udp, "several", targets[0], ECHO, ",".join(targets[1:]))
    assert said["answers"] == [[target, target] for target in targets]


@FAMILIES
def test_server_replies_from_a_connected_socket(udp: Lab, family: int) -> None:
    said = udp_client(udp, "bounce", addresses(udp, "udp-far")[family], CONNECTED, "hello")
    assert said["first"]["heard"] == "hello"
    assert said["first"]["getpeername"][0] == addresses(udp, "client")[family]
    assert said["second"] == "again"


@FAMILIES
def test_datagrams_of_every_size_arrive_unchanged(udp: Lab, family: int) -> None:
    wanted = [0, 1, 1200, 1399, 1400, 1472, 1473, 8192, 8972, 32_768, 61_440, 65_507]
    target = addresses(udp, "udp-far")[family]
    assert udp_client(udp, "sizes", target, ECHO, ",".join(map(str, wanted)))["same"] == wanted


def test_burst_of_ten_thousand_datagrams_is_accounted_for(udp: Lab) -> None:
    """UDP may drop datagrams of a burst; the flow survives, and received datagrams are counted."""
    said = udp_client(udp, "flood", addresses(udp, "udp-far")[4], COUNT, "10000x1200")
    assert 1000 < said["came"] <= said["sent"] == 10_000


def test_both_proxies_log_the_flow_with_identities(udp: Lab) -> None:
    target = addresses(udp, "udp-far2")[4]
    udp_client(udp, "echo", target, ECHO, "log me")
    udp.restart("node1", "proxy")  # ends the flow, as UDP has no end
    source, server = "spiffe://cluster.local/ns/default/sa/default", "/ns/default/sa/server"

    def logged(node: str, direction: str) -> bool:
        return any(
            all(part in line for part in (direction, source, server, f"{target}:{ECHO}", "udp"))
            for line in proxy_log(udp, node).splitlines()
        )

    wait_until(lambda: logged("node1", "outbound"), "the client's proxy to log the flow")
    wait_until(lambda: logged("node2", "inbound"), "the server's proxy to log the flow")


def test_without_the_proxy_no_datagram_leaves_the_node(udp: Lab, tmp_path: Path) -> None:
    token = secrets.token_hex(32)
    target = addresses(udp, "udp-far")[4]
    pcap = tmp_path / "wire.pcap"
    udp.kill("node1", "proxy")
    try:
        with capture(udp, pcap):
            assert udp_client(udp, "refused", target, ECHO)["end"] == "ECONNREFUSED"
            assert token.encode() not in pcap.read_bytes()
            assert _lines(pcap, "udp", "and", "host", target) == []
    finally:
        udp.start("node1", "proxy")
    wait_until(
        lambda: udp_client(udp, "refused", target, ECHO)["end"] == "answered", "UDP to be back"
    )


def test_udp_continues_while_the_agent_restarts(udp: Lab) -> None:
    target = addresses(udp, "udp-far")[4]
    assert udp_client(udp, "echo", target, ECHO, "before")["said"] == "before"
    udp.kill("node1", "agent")
    assert udp_client(udp, "echo", target, ECHO, "without")["said"] == "without"
    udp.start("node1", "agent")
    assert udp_client(udp, "echo", target, ECHO, "after")["said"] == "after"


def test_policy_applies_to_udp_as_to_tcp(udp: Lab) -> None:
    """A denied flow gets no answer, and an open flow is terminated."""
    target = addresses(udp, "udp-far2")[4]
    assert udp_client(udp, "refused", target, ECHO)["end"] == "answered"
    deny = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "no-echo", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "udp-far2"}},
            "action": "DENY",
            "rules": [{"to": [{"operation": {"ports": [str(ECHO)]}}]}],
        },
    }
    assert udp.apply(deny) == []
    try:
        wait_until(
            lambda: udp_client(udp, "refused", target, ECHO)["end"] == "silence", "the denial"
        )
        assert udp_client(udp, "names", target, WHOAMI)["source"] == [target, WHOAMI]
    finally:
        udp.delete("AuthorizationPolicy", "no-echo")
    wait_until(
        lambda: udp_client(udp, "refused", target, ECHO)["end"] == "answered", "UDP to be back"
    )
