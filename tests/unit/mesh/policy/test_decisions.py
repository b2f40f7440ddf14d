# SPDX-License-Identifier: Apache-2.0
"""Tables of policy decisions: matching of fields, their combination, and selection."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.policies import (
    CLIENT,
    DB,
    OTHER,
    ROOT,
    WEB,
    Json,
    authz_request,
    decide,
    peer,
    policies,
    policy,
)
from ztunnel.mesh.model import GatewayPort
from ztunnel.mesh.policy.engine import Cause

P = CLIENT.removeprefix("spiffe://")
V6 = {"source": "fd00::2:3", "to": "fd00::7"}
NO_IDENTITY = {"identity": ""}


def source(**fields: Any) -> Json:
    return {"from": [{"source": fields}]}


def operation(**fields: Any) -> Json:
    return {"to": [{"operation": fields}]}


def when(key: str, values: list[str] | None = None, no: list[str] | None = None) -> Json:
    return {"when": [{"key": key, "values": values or [], "notValues": no or []}]}


# One rule: the rule, the connection, whether it matches. Each row is two cases: an ALLOW policy
# allows exactly the matches, a DENY policy denies exactly the matches.
MATCHES: list[tuple[Json, dict[str, Any], bool]] = [
    # no conditions
    ({}, {}, True),
    ({}, NO_IDENTITY, True),
    # principals
    (source(principals=[P]), {}, True),
    (source(principals=["spiffe://" + P]), {}, True),
    (source(principals=[P + "x"]), {}, False),
    (source(principals=[P[:-1]]), {}, False),
    (source(principals=[P]), NO_IDENTITY, False),
    (source(principals=["a", P]), {}, True),
    (source(principals=["*"]), {}, True),
    (source(principals=["*"]), NO_IDENTITY, False),
    (source(principals=["cluster.local/ns/front/*"]), {}, True),
    (source(principals=["spiffe://cluster.local/ns/front/*"]), {}, True),
    (source(principals=["cluster.local/ns/fro*"]), {}, True),
    (source(principals=["cluster.local/ns/back/*"]), {}, False),
    (source(principals=["cluster.local/ns/front/*"]), NO_IDENTITY, False),
    (source(principals=[P + "*"]), {}, True),
    (source(principals=[P + "more*"]), {}, False),
    (source(principals=["*/sa/client"]), {}, True),
    (source(principals=["*/sa/other"]), {}, False),
    (source(principals=["*" + P]), {}, True),
    (source(principals=["*x" + P]), {}, False),
    (source(principals=["*/sa/client"]), NO_IDENTITY, False),
    (source(principals=["other.domain/ns/front/sa/client"]), {}, False),
    (source(notPrincipals=[P]), {}, False),
    (source(notPrincipals=["x"]), {}, True),
    (source(notPrincipals=[P]), NO_IDENTITY, True),
    (source(notPrincipals=["*"]), {}, False),
    (source(notPrincipals=["*"]), NO_IDENTITY, True),
    (source(notPrincipals=["cluster.local/ns/front/*"]), {}, False),
    (source(notPrincipals=["*/sa/client"]), {}, False),
    (source(principals=["*"], notPrincipals=[P]), {}, False),
    (source(principals=["*"], notPrincipals=["x"]), {}, True),
    # namespaces
    (source(namespaces=["front"]), {}, True),
    (source(namespaces=["back"]), {}, False),
    (source(namespaces=["back", "front"]), {}, True),
    (source(namespaces=["front"]), NO_IDENTITY, False),
    (source(namespaces=["fr*"]), {}, True),
    (source(namespaces=["*nt"]), {}, True),
    (source(namespaces=["*"]), {}, True),
    (source(namespaces=["*"]), NO_IDENTITY, False),
    (source(namespaces=["fron"]), {}, False),
    (source(notNamespaces=["front"]), {}, False),
    (source(notNamespaces=["back"]), {}, True),
    (source(notNamespaces=["front"]), NO_IDENTITY, True),
    (source(notNamespaces=["f*"]), {}, False),
    # service accounts
    (source(serviceAccounts=["front/client"]), {}, True),
    (source(serviceAccounts=["client"]), {}, False),  # of the policy's own namespace
    (source(serviceAccounts=["client"]), {"identity": "spiffe://t/ns/shop/sa/client"}, True),
    (source(serviceAccounts=["back/client"]), {}, False),
    (source(serviceAccounts=["front/client"]), NO_IDENTITY, False),
    (source(notServiceAccounts=["front/client"]), {}, False),
    (source(notServiceAccounts=["front/other"]), {}, True),
    (source(notServiceAccounts=["front/client"]), NO_IDENTITY, True),
    # addresses of the source
    (source(ipBlocks=["10.244.2.3"]), {}, True),
    (source(ipBlocks=["10.244.2.3/32"]), {}, True),
    (source(ipBlocks=["10.244.2.4"]), {}, False),
    (source(ipBlocks=["10.244.2.0/24"]), {}, True),
    (source(ipBlocks=["10.244.2.9/24"]), {}, True),  # host bits do not count
    (source(ipBlocks=["10.244.3.0/24"]), {}, False),
    (source(ipBlocks=["10.0.0.0/8", "1.1.1.1"]), {}, True),
    (source(ipBlocks=["0.0.0.0/0"]), {}, True),
    (source(ipBlocks=["0.0.0.0/0"]), V6, False),
    (source(ipBlocks=["::/0"]), {}, False),
    (source(ipBlocks=["::/0"]), V6, True),
    (source(ipBlocks=["fd00::/16"]), V6, True),
    (source(ipBlocks=["fd00::2:3"]), V6, True),
    (source(ipBlocks=["FD00:0::2:3/128"]), V6, True),
    (source(ipBlocks=["fd01::/16"]), V6, False),
    (source(ipBlocks=["::ffff:10.244.2.0/120"]), {}, True),  # v4-mapped is the IPv4
    (source(ipBlocks=["10.244.2.3"]), NO_IDENTITY, True),  # addresses need no identity
    (source(notIpBlocks=["10.244.2.0/24"]), {}, False),
    (source(notIpBlocks=["10.244.3.0/24"]), {}, True),
    (source(notIpBlocks=["10.0.0.0/8"]), V6, True),
    (source(ipBlocks=["10.0.0.0/8"], notIpBlocks=["10.244.2.3"]), {}, False),
    (source(ipBlocks=["10.0.0.0/8"], notIpBlocks=["10.244.2.4"]), {}, True),
    (source(remoteIpBlocks=["10.244.2.0/24"]), {}, True),
    (source(remoteIpBlocks=["10.244.3.0/24"]), {}, False),
    (source(notRemoteIpBlocks=["10.244.2.0/24"]), {}, False),
    # ports
    (operation(ports=["80"]), {}, True),
    (operation(ports=["81"]), {}, False),
    (operation(ports=["081", "080"]), {}, True),
    (operation(ports=["443", "80"]), {}, True),
    (operation(notPorts=["80"]), {}, False),
    (operation(notPorts=["81"]), {}, True),
    (operation(ports=["80"], notPorts=["80"]), {}, False),
    # conditions
    (when("source.principal", [P]), {}, True),
    (when("source.principal", ["*/sa/client"]), {}, True),
    (when("source.principal", no=[P]), {}, False),
    (when("source.principal", ["*"]), NO_IDENTITY, False),
    (when("source.namespace", ["front"]), {}, True),
    (when("source.namespace", no=["front"]), {}, False),
    (when("source.serviceAccount", ["front/client"]), {}, True),
    (when("source.ip", ["10.244.2.0/24"]), {}, True),
    (when("source.ip", no=["10.244.2.0/24"]), {}, False),
    (when("remote.ip", ["10.244.2.3"]), {}, True),
    (when("destination.ip", ["10.244.1.7"]), {}, True),
    (when("destination.ip", ["10.244.1.8"]), {}, False),
    (when("destination.ip", ["fd00::7"]), V6, True),
    (when("destination.ip", no=["fd00::/64"]), V6, False),
    (when("destination.port", ["80"]), {}, True),
    (when("destination.port", no=["80"]), {}, False),
    (when("destination.port", ["80"], no=["443"]), {}, True),
    # combined: fields of a source and parts of a rule all hold, entries and values any
    (source(namespaces=["front"], ipBlocks=["10.244.2.3"]), {}, True),
    (source(namespaces=["front"], ipBlocks=["10.244.2.4"]), {}, False),
    (source(namespaces=["front"], notIpBlocks=["10.244.2.3"]), {}, False),
    ({**source(namespaces=["front"]), **operation(ports=["80"])}, {}, True),
    ({**source(namespaces=["front"]), **operation(ports=["81"])}, {}, False),
    ({**source(namespaces=["back"]), **operation(ports=["80"])}, {}, False),
    ({**source(namespaces=["front"]), **when("source.ip", ["10.0.0.0/8"])}, {}, True),
    ({**source(namespaces=["front"]), **when("source.ip", ["11.0.0.0/8"])}, {}, False),
    ({"from": [{"source": {"namespaces": ["x"]}}, {"source": {"principals": [P]}}]}, {}, True),
    ({"from": [{"source": {"namespaces": ["x"]}}, {"source": {"principals": ["y"]}}]}, {}, False),
    ({"to": [{"operation": {"ports": ["1"]}}, {"operation": {"notPorts": ["2"]}}]}, {}, True),
    ({"to": [{"operation": {"ports": ["1"]}}, {"operation": {"notPorts": ["80"]}}]}, {}, False),
    (
        {
            "when": [
                {"key": "source.namespace", "values": ["front"]},
                {"key": "destination.port", "values": ["80"]},
            ]
        },
        {},
        True,
    ),
    (
        {
            "when": [
                {"key": "source.namespace", "values": ["front"]},
                {"key": "destination.port", "values": ["81"]},
            ]
        },
        {},
        False,
    ),
]


@pytest.mark.parametrize(("rule", "connection", "matches"), MATCHES, ids=str)
@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_rule_matching(rule: Json, connection: dict[str, Any], matches: bool, action: str) -> None:
    decision = decide(authz_request(**connection), policy([rule], action))
    assert decision.allowed == (matches == (action == "ALLOW"))
    assert decision.rule == (0 if matches else -1)
    assert decision.policy == ("" if decision.cause is Cause.UNRESTRICTED else KEY)


KEY = "AuthorizationPolicy/shop/p"
FRONT, BACK = source(namespaces=["front"]), source(namespaces=["back"])


# Several policies: the objects, whether the connection is allowed, what decided (name/rule).
TOGETHER: list[tuple[str, list[Json], bool, str]] = [
    ("no policy", [], True, ""),
    ("allow without rules allows nothing", [policy()], False, "p/-1"),
    ("allow with an empty list allows nothing", [policy([])], False, "p/-1"),
    ("deny without rules denies nothing", [policy(action="DENY")], True, ""),
    ("an empty rule matches all", [policy([{}])], True, "p/0"),
    ("rules are alternatives", [policy([BACK, FRONT])], True, "p/1"),
    ("none of the rules", [policy([BACK, operation(ports=["1"])])], False, "p/-1"),
    (
        "deny goes before allow",
        [policy([FRONT], name="a"), policy([FRONT], "DENY", name="z")],
        False,
        "z/0",
    ),
    (
        "deny that does not match",
        [policy([FRONT], name="a"), policy([BACK], "DENY", name="z")],
        True,
        "a/0",
    ),
    ("only a deny that does not match", [policy([BACK], "DENY")], True, ""),
    ("allows add up", [policy([BACK], name="a"), policy([FRONT], name="b")], True, "b/0"),
    ("none of the allows", [policy([BACK], name="b"), policy([BACK], name="a")], False, "a/-1"),
    (
        "the first by name is reported",
        [policy([FRONT], "DENY", name="b"), policy([FRONT], "DENY", name="a")],
        False,
        "a/0",
    ),
    ("of another namespace", [policy(namespace="other")], True, ""),
    ("of the root namespace", [policy(namespace=ROOT)], False, "p/-1"),
    (
        "root's allow and the namespace's add up",
        [policy([BACK], namespace=ROOT, name="r"), policy([FRONT], name="n")],
        True,
        "n/0",
    ),
    (
        "root's deny",
        [policy([FRONT], "DENY", namespace=ROOT, name="r"), policy([FRONT], name="n")],
        False,
        "r/0",
    ),
    ("selected", [policy(selector={"matchLabels": {"app": "web"}})], False, "p/-1"),
    (
        "selected by two labels",
        [policy(selector={"matchLabels": {"app": "web", "version": "v1"}})],
        False,
        "p/-1",
    ),
    (
        "one of two labels is not enough",
        [policy(selector={"matchLabels": {"app": "web", "version": "v2"}})],
        True,
        "",
    ),
    ("not selected", [policy(selector={"matchLabels": {"app": "db"}})], True, ""),
    ("an empty selector selects all", [policy(selector={"matchLabels": {}})], False, "p/-1"),
    ("a null selector selects all", [policy(selector=None)], False, "p/-1"),
    (
        "the root's selector selects everywhere",
        [policy(namespace=ROOT, selector={"matchLabels": {"app": "web"}})],
        False,
        "p/-1",
    ),
    (
        "another namespace's selector does not",
        [policy(namespace="other", selector={"matchLabels": {"app": "web"}})],
        True,
        "",
    ),
    ("AUDIT has no effect", [policy([{}], "AUDIT")], True, ""),
    ("CUSTOM denies what it matches", [policy([FRONT], "CUSTOM")], False, "p/0"),
    ("CUSTOM leaves alone what it does not", [policy([BACK], "CUSTOM")], True, ""),
    (
        "v1beta1 is the same",
        [{**policy(), "apiVersion": "security.istio.io/v1beta1"}],
        False,
        "p/-1",
    ),
    ("so is any version", [{**policy(), "apiVersion": "security.istio.io/v9"}], False, "p/-1"),
    ("another group is another thing", [{**policy(), "apiVersion": "example.org/v1"}], True, ""),
    # L7
    ("allow by method matches nothing", [policy([operation(methods=["GET"])])], False, "p/-1"),
    (
        "allow by method, another rule by port",
        [policy([operation(methods=["GET"]), operation(ports=["80"])])],
        True,
        "p/1",
    ),
    (
        "allow by port and path matches nothing",
        [policy([operation(ports=["80"], paths=["/x"])])],
        False,
        "p/-1",
    ),
    (
        "allow with one entry by host matches nothing",
        [policy([{"to": [{"operation": {"ports": ["80"]}}, {"operation": {"hosts": ["a"]}}]}])],
        False,
        "p/-1",
    ),
    ("deny by method denies all", [policy([operation(methods=["GET"])], "DENY")], False, "p/0"),
    (
        "deny by method and port is by port",
        [policy([operation(methods=["GET"], ports=["80"])], "DENY")],
        False,
        "p/0",
    ),
    (
        "deny by method and another port",
        [policy([operation(methods=["GET"], ports=["81"])], "DENY")],
        True,
        "",
    ),
    (
        "deny by request principal denies all",
        [policy([source(requestPrincipals=["*"])], "DENY")],
        False,
        "p/0",
    ),
    (
        "deny by notRequestPrincipals and namespace",
        [policy([source(notRequestPrincipals=["*"], namespaces=["back"])], "DENY")],
        True,
        "",
    ),
    (
        "deny by a header and a namespace",
        [policy([{**FRONT, **when("request.headers[x]", ["y"])}], "DENY")],
        False,
        "p/0",
    ),
    ("allow by a claim", [policy([when("request.auth.claims[x]", ["y"])])], False, "p/-1"),
    ("allow by SNI", [policy([when("connection.sni", ["y"])])], False, "p/-1"),
    # the mTLS mode does not affect connections with an identity
    ("STRICT accepts identities", [peer("STRICT")], True, ""),
]


@pytest.mark.parametrize(("name", "objects", "allowed", "by"), TOGETHER, ids=lambda v: str(v)[:40])
def test_policy_combinations(name: str, objects: list[Json], allowed: bool, by: str) -> None:
    decision = decide(authz_request(), *objects)
    decided_by = f"{decision.policy.rpartition('/')[2]}/{decision.rule}" if decision.policy else ""
    assert (decision.allowed, decided_by) == (allowed, by)


# Plaintext: the objects, the port, whether it is accepted, which policy decided.
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
APP = {"app": "web"}
PLAINTEXT: list[tuple[str, list[Json], int, bool, str]] = [
    ("default", [], 80, True, ""),
    ("STRICT", [peer("STRICT")], 80, False, "shop/p"),
    ("PERMISSIVE", [peer("PERMISSIVE")], 80, True, ""),
    ("DISABLE", [peer("DISABLE")], 80, True, ""),
    ("UNSET", [peer("UNSET")], 80, True, ""),
    ("no mode", [peer()], 80, True, ""),
    ("mesh", [peer("STRICT", namespace=ROOT)], 80, False, f"{ROOT}/p"),
    ("another namespace", [peer("STRICT", namespace="other")], 80, True, ""),
    (
        "namespace before mesh",
        [peer("STRICT", namespace=ROOT), peer("PERMISSIVE")],
        80,
        True,
        "",
    ),
    (
        "namespace before mesh, STRICT",
        [peer("PERMISSIVE", namespace=ROOT), peer("STRICT")],
        80,
        False,
        "shop/p",
    ),
    (
        "UNSET inherits from the mesh",
        [peer("STRICT", namespace=ROOT), peer("UNSET")],
        80,
        False,
        f"{ROOT}/p",
    ),
    (
        "workload before namespace",
        [peer("STRICT"), peer("PERMISSIVE", name="w", labels=APP)],
        80,
        True,
        "",
    ),
    (
        "workload before namespace, STRICT",
        [peer("PERMISSIVE"), peer("STRICT", name="w", labels=APP)],
        80,
        False,
        "shop/w",
    ),
    ("workload of other labels", [peer("STRICT", labels={"app": "db"})], 80, True, ""),
    (
        "workload UNSET inherits from the namespace",
        [peer("STRICT", name="n"), peer("UNSET", name="w", labels=APP)],
        80,
        False,
        "shop/n",
    ),
    (
        "workload UNSET inherits from the mesh",
        [peer("STRICT", namespace=ROOT), peer("UNSET", name="w", labels=APP)],
        80,
        False,
        f"{ROOT}/p",
    ),
    ("port exception", [peer("STRICT", labels=APP, ports={80: "PERMISSIVE"})], 80, True, ""),
    ("another port", [peer("STRICT", labels=APP, ports={80: "PERMISSIVE"})], 81, False, "shop/p"),
    ("port as a string", [peer("STRICT", labels=APP, ports={"80": "DISABLE"})], 80, True, ""),
    ("port STRICT", [peer("PERMISSIVE", labels=APP, ports={80: "STRICT"})], 80, False, "shop/p"),
    ("port UNSET", [peer("STRICT", labels=APP, ports={80: "UNSET"})], 80, False, "shop/p"),
    (
        "port UNSET inherits from the mesh",
        [peer("STRICT", namespace=ROOT), peer(labels=APP, ports={80: "UNSET"})],
        80,
        False,
        f"{ROOT}/p",
    ),
    (
        "port STRICT under a permissive mesh",
        [peer("PERMISSIVE", namespace=ROOT), peer(labels=APP, ports={80: "STRICT"})],
        80,
        False,
        "shop/p",
    ),
    (
        "of two the oldest",
        [peer("STRICT", name="a", created=NEW), peer("PERMISSIVE", name="b", created=OLD)],
        80,
        True,
        "",
    ),
    (
        "of two the oldest, STRICT",
        [peer("STRICT", name="b", created=OLD), peer("PERMISSIVE", name="a", created=NEW)],
        80,
        False,
        "shop/b",
    ),
    (
        "without dates by name",
        [peer("STRICT", name="a"), peer("PERMISSIVE", name="b")],
        80,
        False,
        "shop/a",
    ),
    (
        "own namespace's workload before the root's",
        [
            peer("STRICT", namespace=ROOT, labels=APP, created=OLD),
            peer("PERMISSIVE", labels=APP, created=NEW),
        ],
        80,
        True,
        "",
    ),
    (
        "the root's workload",
        [peer("STRICT", namespace=ROOT, labels=APP), peer("PERMISSIVE")],
        80,
        False,
        f"{ROOT}/p",
    ),
]


@pytest.mark.parametrize(
    ("name", "objects", "port", "allowed", "by"), PLAINTEXT, ids=lambda v: str(v)[:40]
)
def test_plaintext_by_mtls_mode(
    name: str, objects: list[Json], port: int, allowed: bool, by: str
) -> None:
    decision = decide(authz_request(port, identity=""), *objects)
    assert decision.allowed == allowed
    assert decision.policy == (f"PeerAuthentication/{by}" if by else "")
    assert allowed or decision.cause is Cause.PLAINTEXT


@pytest.mark.parametrize(
    ("objects", "web", "db", "other"),
    [
        ([policy()], False, False, True),
        ([policy(namespace=ROOT)], False, False, False),
        ([policy(selector={"matchLabels": {"app": "web"}})], False, True, True),
        ([policy(namespace=ROOT, selector={"matchLabels": {"app": "web"}})], False, True, False),
        ([policy(namespace="other")], True, True, False),
        ([policy(), policy([{}], name="q", selector={"matchLabels": {"app": "db"}})], 0, 1, 1),
    ],
)
def test_policy_selection(objects: list[Json], web: bool, db: bool, other: bool) -> None:
    allowed = [decide(authz_request(), *objects, workload=w).allowed for w in (WEB, DB, OTHER)]
    assert allowed == [web, db, other]


@pytest.mark.parametrize(
    ("objects", "allowed", "would"),
    [
        ([policy(annotations={"istio.io/dry-run": "true"})], True, "no rule of the ALLOW"),
        ([policy([FRONT], "DENY", annotations={"istio.io/dry-run": "true"})], True, "denied by"),
        ([policy([BACK], "DENY", annotations={"istio.io/dry-run": "true"})], True, ""),
        ([policy([FRONT], annotations={"istio.io/dry-run": "true"})], True, ""),
        (
            [policy(name="a"), policy([FRONT], annotations={"istio.io/dry-run": "True"})],
            False,
            "allowed by",
        ),
        ([policy(annotations={"istio.io/dry-run": "false"})], False, ""),
        ([policy(annotations={"istio.io/dry-run": "yes, please"})], False, ""),  # enforced
    ],
)
def test_dry_run_is_reported_but_not_enforced(
    objects: list[Json], allowed: bool, would: str
) -> None:
    decision = decide(authz_request(), *objects)
    assert decision.allowed == allowed
    assert decision.dry_run.startswith(would)
    assert bool(decision.dry_run) == bool(would)


def test_the_table_has_at_least_150_cases() -> None:
    assert 2 * len(MATCHES) + len(TOGETHER) + len(PLAINTEXT) >= 150


GATEWAY = msgspec.structs.replace(WEB, gateway_ports=(GatewayPort(443),))


@pytest.mark.parametrize("identity", [CLIENT, ""])
def test_listener_ports_of_a_gateway_are_left_to_its_envoy(identity: str) -> None:
    engine = policies(policy([{}], "DENY"), peer("STRICT"))
    decision = engine.decide(GATEWAY, authz_request(443, identity=identity))
    assert (decision.allowed, decision.cause) == (True, Cause.GATEWAY)
    assert not engine.decide(GATEWAY, authz_request(8443, identity=identity)).allowed
    assert not engine.decide(WEB, authz_request(443, identity=identity)).allowed


def test_a_tcp_listener_does_not_open_the_port_of_udp() -> None:
    engine = policies(policy([{}], "DENY"))
    datagrams = msgspec.structs.replace(authz_request(443), udp=True)
    assert not engine.decide(GATEWAY, datagrams).allowed
    both = msgspec.structs.replace(WEB, gateway_ports=(GatewayPort(443, "UDP"),))
    assert engine.decide(both, datagrams).cause is Cause.GATEWAY
    assert not engine.decide(both, authz_request(443)).allowed


@pytest.mark.parametrize(("count", "allowed"), [(256, True), (257, False)])
def test_too_many_selectors_deny_the_workload_and_no_other(count: int, allowed: bool) -> None:
    names = [f"label{number}" for number in range(count)]
    engine = policies(
        *(policy([{}], "ALLOW", name=name, selector={"matchLabels": {name: "x"}}) for name in names)
    )
    labelled = msgspec.structs.replace(WEB, labels=dict.fromkeys(names, "x"))
    decision = engine.decide(labelled, authz_request())
    assert decision.allowed == allowed
    assert (decision.cause is Cause.TOO_MANY) == (not allowed)
    one = msgspec.structs.replace(WEB, uid="other", labels={names[0]: "x"})
    assert engine.decide(one, authz_request()).allowed
