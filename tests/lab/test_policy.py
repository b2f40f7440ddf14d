# SPDX-License-Identifier: Apache-2.0
"""Policies on every path: HBONE, plaintext, same node. A denied connection never passes, whatever
changes or crashes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml

from tests.lab.helpers.harness import APPS, addresses, client, proxy_log
from tests.lab.test_ztctl import ZTCTL, rows, ztctl
from tests.lab.traffic.test_same_node import wait_until_bypassed
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, admin_get
from ztunnel.lab.objects import write_atomically

Json = dict[str, Any]
CLOSED = ("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE")
ECHO = 7000
FLIPS = 200

# source pod, its namespace, destination pod
HBONE = ("client", "default", "server")
PLAINTEXT = ("client", "plain", "server")
SAME_NODE = ("client", "default", "near")
PATHS = [HBONE, PLAINTEXT, SAME_NODE]
ALLOWED = ("server", "default", "near")  # another account than `client`
Path = tuple[str, str, str]


def authorization(action: str, *rules: Json, name: str = "test", **spec: Any) -> Json:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"action": action, "rules": list(rules), **spec},
    }


def strict(mode: str = "STRICT", **spec: Any) -> Json:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "test", "namespace": "default"},
        "spec": {"mtls": {"mode": mode}, **spec},
    }


def source(**fields: Any) -> Json:
    return {"from": [{"source": fields}]}


def port(number: int) -> Json:
    return {"to": [{"operation": {"ports": [str(number)]}}]}


class Policies:
    """The policies in one file of the directory of the lab, replaced as a whole."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._path = lab.names.objects / "test-policies.yaml"

    def apply(self, *objects: Json) -> None:
        """Replace all policies and wait until they are enforced on every node."""
        before = self._revisions()
        write_atomically(self._path, yaml.safe_dump_all(objects))
        self._await(before)

    def clear(self) -> None:
        """Remove all policies."""
        if self._path.exists():
            before, had = self._revisions(), self._path.read_text().strip()
            self._path.unlink()
            if had:
                self._await(before)

    def _await(self, before: list[int]) -> None:
        wait_until(
            lambda: all(a > b for a, b in zip(self._revisions(), before, strict=True)),
            "the agents to see it",
        )
        for node in (
            "node1",
            "node2",
        ):  # requested after the change was sent, answered once it is enforced
            admin_get(self._lab.names, node, "/v1/connections")

    def _revisions(self) -> list[int]:
        answers = [admin_get(self._lab.names, node, "/v1/status")[1] for node in ("node1", "node2")]
        return [int((answer or {}).get("source", {}).get("revision", -1)) for answer in answers]


@pytest.fixture
def policies(lab: Lab) -> Iterator[Policies]:
    made = Policies(lab)
    try:
        yield made
    finally:
        made.clear()


def end(lab: Lab, path: Path, family: int = 4, at: int = ECHO) -> str:
    """How a connection ends: `data` when it is allowed."""
    pod, namespace, to = path
    said = client(lab, pod, "poke", addresses(lab, to)[family], at, namespace=namespace)
    return str(said["end"])


def ip(lab: Lab, path: Path, family: int = 4) -> str:
    return addresses(lab, path[0], path[1])[family]


ID = "cluster.local/ns/default/sa/default"
OTHER = "cluster.local/ns/default/sa/server"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("path", "rules"),
    [
        (HBONE, (source(principals=[ID]), source(principals=["*/sa/other"]))),
        (HBONE, (source(namespaces=["default"]), source(namespaces=["plain"]))),
        (HBONE, (port(ECHO), port(ECHO + 1))),
        (PLAINTEXT, (source(notPrincipals=["*"]), source(principals=["*"]))),
        (PLAINTEXT, (port(ECHO), source(namespaces=["plain"]))),  # plaintext proves no namespace
        (SAME_NODE, (source(principals=[ID]), source(principals=["*/sa/other"]))),
        (SAME_NODE, (source(namespaces=["def*"]), source(namespaces=["plain"]))),
        (SAME_NODE, (port(ECHO), port(ECHO + 1))),
    ],
)
def test_deny_policy_closes_only_matching_connections(
    lab: Lab, policies: Policies, path: Path, rules: tuple[Json, Json], family: int
) -> None:
    if path is SAME_NODE:
        wait_until_bypassed(lab, family)
    matching, other = rules
    policies.apply(authorization("DENY", matching))
    assert end(lab, path, family) in CLOSED
    policies.apply(authorization("DENY", other))
    assert end(lab, path, family) == "data"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("path", PATHS)
def test_policy_matches_the_address_of_the_client(
    lab: Lab, policies: Policies, path: Path, family: int
) -> None:
    mine = source(ipBlocks=[ip(lab, path, family)])
    policies.apply(authorization("DENY", mine))
    assert end(lab, path, family) in CLOSED
    policies.apply(authorization("ALLOW", mine))
    assert end(lab, path, family) == "data"
    policies.apply(authorization("ALLOW", source(notIpBlocks=[ip(lab, path, family)])))
    assert end(lab, path, family) in CLOSED


@pytest.mark.parametrize("path", PATHS)
def test_allow_policy_accepts_only_matching_connections(
    lab: Lab, policies: Policies, path: Path
) -> None:
    policies.apply(authorization("ALLOW", port(ECHO)))
    assert end(lab, path) == "data"
    assert end(lab, path, at=7004) in CLOSED
    policies.apply(authorization("ALLOW"))
    assert end(lab, path) in CLOSED


def test_selector_limits_a_policy_to_matching_pods(lab: Lab, policies: Policies) -> None:
    policies.apply(authorization("DENY", {}, selector={"matchLabels": {"app": "near"}}))
    assert [end(lab, path) == "data" for path in PATHS] == [True, True, False]


def test_strict_refuses_plaintext_only(lab: Lab, policies: Policies) -> None:
    policies.apply(strict())
    assert [end(lab, path) == "data" for path in PATHS] == [True, False, True]
    exception: Json = {
        "selector": {"matchLabels": {"app": "server"}},
        "portLevelMtls": {str(ECHO): {"mode": "PERMISSIVE"}},
    }
    policies.apply(strict(**exception))
    assert end(lab, PLAINTEXT) == "data"
    assert end(lab, PLAINTEXT, at=7004) in CLOSED


def test_node_probes_bypass_policy(lab: Lab, policies: Policies) -> None:
    policies.apply(authorization("DENY", {}), strict())
    for target in addresses(lab, "server").values():
        probe = f"exec 3<>/dev/tcp/{target}/{ECHO}; echo probe >&3; head -n 1 <&3"
        done = lab.node_exec("node2", "bash", "-c", probe)
        assert done.stdout == "probe\n", done.stderr  # an intercepted probe connects as well


def test_invalid_policy_denies_and_reports_the_reason(lab: Lab, policies: Policies) -> None:
    policies.apply(authorization("DENY", {"from": []}))
    assert end(lab, HBONE) in CLOSED
    _, status = admin_get(lab.names, "node2", "/v1/status")
    assert "rejected" in status["source"]["errors"]["AuthorizationPolicy default/test"]


def test_denial_is_logged_with_identities_and_policy(lab: Lab, policies: Policies) -> None:
    policies.apply(authorization("DENY", source(principals=[ID])))
    assert end(lab, HBONE) in CLOSED
    wanted = (
        "denied",
        f"src.identity=spiffe://{ID}",
        "dst.identity=spiffe://cluster.local/ns/default/sa/server",
        "policy='AuthorizationPolicy default/test'",
        "response_flags=DENY",
    )
    wait_until(
        lambda: any(
            all(part in line for part in wanted)
            for line in proxy_log(lab, "node2").splitlines()[-50:]
        ),
        "the denial's line",
    )


def test_policy_commands_explain_decisions(lab: Lab, policies: Policies) -> None:
    """`ztctl policy` on live connections: predictions come true, and logged decisions are
    explained."""
    policies.apply(
        authorization("ALLOW", source(principals=[OTHER]), name="only-other"),
        authorization("DENY", {"from": []}, name="broken", selector={"matchLabels": {"app": "x"}}),
    )
    listed = {row["name"]: row for row in rows(lab, "policy", "list")}
    assert listed["only-other"]["state"] == "in force"
    assert listed["broken"]["state"] == "refused"
    assert "rules[0].from" in listed["broken"]["message"]
    question = ("policy", "test", "--from", "client", "--to", f"server:{ECHO}")
    foretold = ztctl(lab, *question)
    assert foretold.returncode == 1, foretold.stderr
    assert "DENIED" in foretold.stdout
    assert "only-other" in foretold.stdout
    assert end(lab, HBONE) in CLOSED
    wait_until(lambda: "only-other" in proxy_log(lab, "node2"), "the denial's line")
    output = subprocess.run(
        [str(ZTCTL), "--lab", lab.names.name, "policy", "explain"],
        input=proxy_log(lab, "node2"),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    for part in ("only-other", f"spiffe://{ID}", f"principals: [{ID}]"):
        assert part in output
    assert ztctl(lab, "policy", "test", "--from", "server", "--to", f"near:{ECHO}").returncode == 0
    assert end(lab, ALLOWED) == "data"
    assert "default/server" in ztctl(lab, "policy", "show", "only-other").stdout


@contextmanager
def open_client(lab: Lab, path: Path, what: str = "hold") -> Iterator[subprocess.Popen[bytes]]:
    """A client that holds one connection, or opens connections repeatedly, until stdin closes."""
    pod, namespace, to = path
    argv = [sys.executable, str(APPS / "client.py"), what, addresses(lab, to)[4], str(ECHO)]
    process = lab.popen(pod, *argv, namespace=namespace)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline()
        yield process
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def echo_of(process: subprocess.Popen[bytes], line: bytes = b"hello\n") -> bytes:
    """The echo; empty when the connection is closed."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.readline()


@pytest.mark.parametrize("path", PATHS)
def test_live_connection_is_closed_when_it_is_denied(
    lab: Lab, policies: Policies, path: Path
) -> None:
    if path is SAME_NODE:
        wait_until_bypassed(lab)
    with open_client(lab, path) as process:
        assert echo_of(process) == b"hello\n"
        policies.apply(authorization("DENY", source(ipBlocks=["203.0.113.0/24"])))
        assert echo_of(process) == b"hello\n"
        policies.apply(authorization("DENY", source(ipBlocks=[ip(lab, path)])))
        assert echo_of(process) == b""
        process.wait(10)


# Each of these policies denies `client` in another way and allows OTHER.
# No connection may be allowed at any time.
TURNS: list[tuple[Json, ...]] = [
    (authorization("ALLOW", source(principals=[OTHER]), name="only-other"),),
    (
        authorization("DENY", source(principals=[ID]), name="not-client"),
        authorization("DENY", source(notPrincipals=["*"]), name="not-strangers"),
    ),
    (authorization("DENY", source(notPrincipals=[OTHER]), name="all-but-other"),),
    (
        authorization("ALLOW", source(principals=["*"]), name="known"),
        authorization("DENY", source(principals=[ID]), name="again-not-client"),
    ),
]


def connection_ends(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Stop the client; return how its connections ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    ends: dict[str, int] = json.loads(process.stdout.readline())
    return ends


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_denied_connection_passes_while_policies_change(lab: Lab, policies: Policies) -> None:
    policies.apply(*TURNS[0])
    with ExitStack() as stack:
        clients = [stack.enter_context(open_client(lab, path, "reconnect")) for path in PATHS]
        allowed = stack.enter_context(open_client(lab, ALLOWED, "reconnect"))
        for flip in range(FLIPS):
            policies.apply(*TURNS[(flip + 1) % len(TURNS)])
        assert set(connection_ends(allowed)) == {"data"}
        for path, reconnecting in zip(PATHS, clients, strict=True):
            ends = connection_ends(reconnecting)
            assert set(ends) <= set(CLOSED), (path, ends)
            assert sum(ends.values()) > FLIPS, (path, ends)


def test_same_node_bypass_survives_policies_that_allow_the_pair(
    lab: Lab, policies: Policies
) -> None:
    """Each change revokes the bypass; open connections still finish."""
    wait_until_bypassed(lab)
    with open_client(lab, SAME_NODE, "reconnect") as reconnecting:
        for number in range(40):
            policies.apply(authorization("DENY", source(namespaces=[f"n{number}"])))
        assert set(connection_ends(reconnecting)) == {"data"}
    wait_until_bypassed(lab)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", ["proxy", "agent"])
def test_no_denied_connection_passes_during_a_restart(
    lab: Lab, policies: Policies, part: str
) -> None:
    """The processes are killed, not stopped; allowed connections work again afterwards."""
    policies.apply(*TURNS[1])
    with ExitStack() as stack:
        clients = [stack.enter_context(open_client(lab, path, "reconnect")) for path in PATHS]
        for _ in range(3):
            for node in ("node1", "node2"):
                lab.kill(node, part)
                lab.start(node, part)
        for path, reconnecting in zip(PATHS, clients, strict=True):
            ends = connection_ends(reconnecting)
            assert set(ends) <= set(CLOSED), (path, ends)
            assert ends
    policies.clear()
    for path in PATHS:
        wait_until(lambda path=path: end(lab, path) == "data", f"service on {path}")  # type: ignore[misc]


def test_policy_changed_while_the_agent_was_down_closes_bypassed_connections(
    lab: Lab, policies: Policies
) -> None:
    wait_until_bypassed(lab)
    with open_client(lab, SAME_NODE) as process:
        assert echo_of(process) == b"hello\n"
        lab.kill("node1", "agent")
        write_atomically(
            lab.names.objects / "test-policies.yaml",
            yaml.safe_dump(authorization("DENY", source(principals=[ID]))),
        )
        lab.start("node1", "agent")
        wait_until(lambda: echo_of(process) == b"", "the connection to be destroyed")
        process.wait(10)
