# SPDX-License-Identifier: Apache-2.0
"""Translation and policy engine against the reference evaluator, on generated policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.policies import ROOT, Json, peer, policies, policy
from tests.unit.mesh.policy import reference_evaluator
from ztunnel.kube.objects.policies import read_authorization_policy, read_peer_authentication
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy import rule_index
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.policy.model import Policy

NAMESPACES = ["shop", "other", ROOT]
PRINCIPALS = [
    f"{domain}/ns/{namespace}/sa/{account}"
    for domain in ("cluster.local", "d")
    for namespace in ("shop", "front", "frontend")
    for account in ("a", "ab")
]
SOURCES = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.0.1", "fd00::1", "fd00:1::1"]
TARGETS = ["10.9.0.1", "10.9.0.2", "fd00:9::1"]
NETS = [*SOURCES, *TARGETS, "10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd00::/32", "::/0"]
PORTS = ["80", "81", "443"]
NAMES = ["shop", "front", "frontend", "f*", "front*", "*end", "*", "*t"]
IDS = [*PRINCIPALS, "*", "cluster.local/*", "cluster.local/ns/front*", "d/ns/*", "*/sa/a", "*b"]
ACCOUNTS = ["a", "ab", "shop/a", "front/ab", "frontend/a"]
LABELS = {"app": ["web", "db"], "tier": ["x", "y"]}


def some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3)


def mapping(**fields: list[str]) -> st.SearchStrategy[Json]:
    """At least one of the fields, each also in its `not` form."""
    every: dict[str, st.SearchStrategy[Any]] = {}
    for name, values in fields.items():
        every[name] = some(values)
        every[f"not{name[0].upper()}{name[1:]}"] = some(values)
    return st.fixed_dictionaries({}, optional=every).filter(bool)


sources = mapping(
    principals=IDS, namespaces=NAMES, ipBlocks=NETS, remoteIpBlocks=NETS, serviceAccounts=ACCOUNTS
)


def condition(key: str, values: list[str]) -> st.SearchStrategy[Json]:
    fields = st.fixed_dictionaries({}, optional={"values": some(values), "notValues": some(values)})
    return fields.filter(bool).map(lambda each: {"key": key, **each})


conditions = st.one_of(
    condition("source.principal", IDS),
    condition("source.namespace", NAMES),
    condition("source.ip", NETS),
    condition("destination.ip", NETS),
    condition("destination.port", PORTS),
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(sources.map(lambda s: {"source": s}), min_size=1, max_size=2),
        "to": st.lists(
            mapping(ports=PORTS).map(lambda o: {"operation": o}), min_size=1, max_size=2
        ),
        "when": st.lists(conditions, max_size=2),
    },
)
labels = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(values) for key, values in LABELS.items()}
)


@st.composite
def authorizations(draw: st.DrawFn) -> Json:
    spec: Json = {}
    if draw(st.booleans()):
        spec["selector"] = {"matchLabels": draw(labels)}
    return policy(
        draw(st.lists(rules, max_size=3)),
        draw(st.sampled_from(["", "ALLOW", "DENY"])),
        name=draw(st.sampled_from("abcd")),
        namespace=draw(st.sampled_from(NAMESPACES)),
        **spec,
    )


MODES = ["STRICT", "PERMISSIVE", "DISABLE", "UNSET"]


@st.composite
def peers(draw: st.DrawFn) -> Json:
    selected = draw(labels)
    return peer(
        draw(st.sampled_from(["", *MODES])),
        name=draw(st.sampled_from("abcd")),
        namespace=draw(st.sampled_from(NAMESPACES)),
        created=draw(st.sampled_from(["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])),
        labels=selected or None,
        ports=draw(st.dictionaries(st.sampled_from([80, 81]), st.sampled_from(MODES)))
        if selected
        else None,
    )


def key(obj: Json) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


objects = st.lists(st.one_of(authorizations(), peers()), max_size=8, unique_by=key)
requests = st.builds(
    AuthzRequest,
    st.sampled_from(SOURCES),
    st.sampled_from(["", *(f"spiffe://{each}" for each in PRINCIPALS)]),
    st.builds(SocketAddress, st.sampled_from(TARGETS), st.sampled_from([80, 81, 443])),
)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    return Workload(
        uid="w",
        pod_uid="w",
        name="w",
        namespace=draw(st.sampled_from(["shop", "other", ROOT])),
        service_account="w",
        node="n",
        addresses=(),
        labels=draw(labels),
    )


def expected_decision(objects: list[Json], workload: Workload, request: AuthzRequest) -> bool:
    return reference_evaluator.allowed(
        objects,
        ROOT,
        namespace=workload.namespace,
        labels=workload.labels,
        source_ip=request.source_ip,
        identity=request.identity,
        ip=request.destination.ip,
        port=request.destination.port,
    )


@pytest.fixture(params=[rule_index.MAX_SINGLE_LOOKUPS, 0], ids=["as configured", "matrix"])
def single_lookups(request: pytest.FixtureRequest) -> Iterator[None]:
    """With 0, every rule is evaluated by the matrix of its policy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule_index, "MAX_SINGLE_LOOKUPS", request.param)
        yield


FIXTURE = [HealthCheck.function_scoped_fixture]


@pytest.mark.usefixtures("single_lookups")
@settings(max_examples=600, deadline=None, suppress_health_check=FIXTURE)
@given(objects, st.lists(workloads(), min_size=1, max_size=2), st.lists(requests, min_size=1))
def test_decisions_equal_reference_evaluator(
    objects: list[Json], workloads: list[Workload], requests: list[AuthzRequest]
) -> None:
    made = policies(*objects)
    assert not [each for each in made if each.refused]
    for workload in workloads:
        for request in requests:
            expected = expected_decision(objects, workload, request)
            assert made.decide(workload, request).allowed == expected


def read(obj: Json) -> Policy:
    if obj["kind"] == "PeerAuthentication":
        return read_peer_authentication(obj, ROOT)
    return read_authorization_policy(obj, ROOT).policy


@pytest.mark.usefixtures("single_lookups")
@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURE)
@given(
    st.lists(st.tuples(st.booleans(), st.one_of(authorizations(), peers())), max_size=12),
    workloads(),
    st.lists(requests, min_size=1, max_size=5),
)
def test_incremental_updates_equal_fresh_state(
    steps: list[tuple[bool, Json]], workload: Workload, requests: list[AuthzRequest]
) -> None:
    kept, now = PolicyEngine(), {}
    for adds, obj in steps:
        value = read(obj)
        if adds:
            kept.put(value)
            now[value.key] = value
        else:
            kept.remove(value.key)
            now.pop(value.key, None)
        for request in requests:
            kept.decide(workload, request)  # fills its cache
    fresh = PolicyEngine()
    for value in now.values():
        fresh.put(value)
    for request in requests:
        assert kept.decide(workload, request) == fresh.decide(workload, request)
    for value in now.values():
        kept.remove(value.key)
    assert not kept._rules._by_anchor
    assert not kept._peers._by_anchor
