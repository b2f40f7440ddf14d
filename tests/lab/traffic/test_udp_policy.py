# SPDX-License-Identifier: Apache-2.0
"""Policy for UDP on every path: tunneled, plaintext from outside, same node, and to destinations
without connect-udp."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.helpers.harness import APPS, addresses
from tests.lab.helpers.scrape import scrape
from tests.lab.test_policy import authorization, source, strict
from tests.lab.traffic.udp_lab import ECHO, WHOAMI, udp_client, udp_servers
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, admin_get

FAMILIES = pytest.mark.parametrize("family", [4, 6])
DEFAULT, PLAIN = "default", "plain"
MINE = "cluster.local/ns/default/sa/default"


@pytest.fixture(scope="module")
def udp(lab: Lab) -> Iterator[Lab]:
    with udp_servers(lab) as made:
        yield made


@contextmanager
def in_force(lab: Lab, *policies: dict[str, Any]) -> Iterator[None]:
    """Apply the policies, and remove them afterwards."""
    assert lab.apply(*policies) == []
    try:
        yield
    finally:
        for each in policies:
            lab.delete(each["kind"], each["metadata"]["name"], each["metadata"]["namespace"])


def ends(
    lab: Lab, to: str, port: int = ECHO, *, family: int = 4, frm: str = DEFAULT, at: str = DEFAULT
) -> str:
    """How a request of the client of a namespace to a server ends."""
    target = addresses(lab, to, at)[family]
    return str(udp_client(lab, "refused", target, port, namespace=frm)["end"])


def becomes(lab: Lab, wanted: str, to: str, port: int = ECHO, **how: Any) -> None:
    wait_until(lambda: ends(lab, to, port, **how) == wanted, f"{to} {how} to be {wanted}")


def agent_log(lab: Lab, node: str) -> str:
    text: str = Path(lab.log_paths(node, "agent", "default")[0]).read_text(encoding="utf-8")
    return text


def logged(lab: Lab, node: str, *parts: str) -> None:
    def found() -> bool:
        return any(all(part in line for part in parts) for line in agent_log(lab, node).split("\n"))

    wait_until(found, f"{node}'s agent to log {parts}")


def udp_counts(lab: Lab, node: str) -> dict[str, int]:
    _, status = admin_get(lab.names, node, "/v1/status")
    stats: dict[str, int] = (status or {})["data_path"]["stats"]
    return {name: count for name, count in stats.items() if name.startswith("udp_")}


@FAMILIES
def test_strict_rejects_only_plaintext(udp: Lab, family: int) -> None:
    """Plaintext from outside the mesh is rejected; connect-udp and pods on the same node are
    accepted."""
    becomes(udp, "answered", "udp-far", frm=PLAIN, family=family)
    before = udp_counts(udp, "node2")["udp_denied"]
    with in_force(udp, strict()):
        becomes(udp, "silence", "udp-far", frm=PLAIN, family=family)
        assert ends(udp, "udp-far", family=family) == "answered"
        assert ends(udp, "udp-near", family=family) == "answered"
        assert ends(udp, "udp-near", frm=PLAIN, family=family) == "silence"
        assert ends(udp, "udp-far", frm=PLAIN, family=family) == "silence"
    assert udp_counts(udp, "node2")["udp_denied"] > before
    client, server = addresses(udp, "client", PLAIN)[family], addresses(udp, "udp-far")[family]
    at = f"[{server}]:{ECHO}" if family == 6 else f"{server}:{ECHO}"
    logged(udp, "node2", "denied", client, at, "udp", "PeerAuthentication default/test")
    becomes(udp, "answered", "udp-far", frm=PLAIN, family=family)
    page = scrape(udp, "node2")
    assert page.total("ztunnel_bpf_events_total", event="udp_denied") > 0
    labels = {"request_protocol": "udp", "response_flags": "DENY", "reporter": "destination"}
    assert page.total("istio_tcp_connections_failed_total", **labels) > 0


def test_port_can_be_exempt_from_strict(udp: Lab) -> None:
    ports = {str(WHOAMI): {"mode": "PERMISSIVE"}}
    selector = {"matchLabels": {"app": "udp-far"}}
    with in_force(udp, strict(selector=selector, portLevelMtls=ports)):
        becomes(udp, "silence", "udp-far", frm=PLAIN)
        assert ends(udp, "udp-far", WHOAMI, frm=PLAIN) == "answered"
        assert ends(udp, "udp-far2", frm=PLAIN) == "answered"
    becomes(udp, "answered", "udp-far", frm=PLAIN)


def test_plaintext_source_has_an_address_and_no_identity(udp: Lab) -> None:
    mine = addresses(udp, "client", PLAIN)[4]
    for rule, end in (
        (source(principals=[MINE]), "silence"),
        (source(ipBlocks=[mine]), "answered"),
    ):
        with in_force(udp, authorization("ALLOW", source(principals=[MINE]), name="first")):
            becomes(udp, "silence", "udp-far", frm=PLAIN)
            assert ends(udp, "udp-far") == "answered"
            with in_force(udp, authorization("ALLOW", rule)):
                becomes(udp, end, "udp-far", frm=PLAIN)
    becomes(udp, "answered", "udp-far", frm=PLAIN)


@FAMILIES
def test_same_node_udp_is_authorized_by_identity_and_stays_native(udp: Lab, family: int) -> None:
    carried = udp_counts(udp, "node1")["udp_redirected"]
    near = addresses(udp, "udp-near")[family]
    with in_force(udp, authorization("ALLOW", source(principals=[MINE]))):
        becomes(udp, "silence", "udp-near", frm=PLAIN, family=family)
        said = udp_client(udp, "names", near, WHOAMI)
        assert said["server"][0] == addresses(udp, "client")[family]
        assert said["source"] == [near, WHOAMI]
        with in_force(udp, authorization("DENY", source(principals=[MINE]), name="no")):
            becomes(udp, "silence", "udp-near", family=family)
            logged(udp, "node1", "denied", "udp", "same_node", MINE, "udp-near", "default/no")
        becomes(udp, "answered", "udp-near", family=family)
    becomes(udp, "answered", "udp-near", frm=PLAIN, family=family)
    assert udp_counts(udp, "node1")["udp_redirected"] == carried


def test_open_flow_is_terminated_when_policy_denies_it(udp: Lab) -> None:
    """The client continues on a connected socket whose authorization is revoked."""
    near = addresses(udp, "udp-near")[4]
    talk = udp.popen("client", *_talking(near))
    lines, answers = talk.stdin, talk.stdout
    assert lines is not None
    assert answers is not None

    def answered() -> bool:
        lines.write(b"x\n")
        lines.flush()
        return answers.readline() == b"answered\n"

    try:
        assert answered()
        with in_force(udp, authorization("DENY", source(principals=[MINE]))):
            wait_until(lambda: not answered(), "the flow to be cut off")
        wait_until(answered, "the flow to be back")
    finally:
        lines.close()
        talk.wait(10)
        answers.close()


def _talking(host: str) -> list[str]:
    return [sys.executable, str(APPS / "udp_client.py"), "talk", host, str(ECHO)]


@FAMILIES
def test_no_plaintext_is_sent_to_a_strict_pod(udp: Lab, family: int) -> None:
    """The destination is outside the mesh, so only the sender can refuse."""
    becomes(udp, "answered", "udp-far", at=PLAIN, family=family)
    before = udp_counts(udp, "node1")["udp_strict"]
    policy = strict()
    policy["metadata"]["namespace"] = PLAIN
    with in_force(udp, policy):
        becomes(udp, "ECONNREFUSED", "udp-far", at=PLAIN, family=family)
        assert ends(udp, "udp-far", at=PLAIN, frm=PLAIN, family=family) == "answered"
        target = addresses(udp, "udp-far", PLAIN)[family]
        logged(udp, "node1", "refused", "outbound", "udp", target, "client", "mTLS is required")
    assert udp_counts(udp, "node1")["udp_strict"] > before
    becomes(udp, "answered", "udp-far", at=PLAIN, family=family)


def test_udp_policy_is_enforced_while_the_agent_is_down(udp: Lab) -> None:
    """Existing authorizations stay valid; new flows wait for an agent where a policy could deny
    them."""
    with in_force(udp, strict()):
        becomes(udp, "silence", "udp-near", frm=PLAIN)
        assert ends(udp, "udp-near") == "answered"
        udp.kill("node1", "agent")
        try:
            assert ends(udp, "udp-near") == "answered"
            assert ends(udp, "udp-near", frm=PLAIN) == "silence"
        finally:
            udp.start("node1", "agent")
        becomes(udp, "answered", "udp-near")
        assert ends(udp, "udp-near", frm=PLAIN) == "silence"
    becomes(udp, "answered", "udp-near", frm=PLAIN)
