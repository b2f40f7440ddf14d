# SPDX-License-Identifier: Apache-2.0
"""Delta ADS: order of updates, subscriptions, reconnects, rejections."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.gateway.xds.fake_envoy import (
    FakeEnvoy,
    cluster,
    config,
    endpoints,
    listener,
    routes,
)
from ztunnel.gateway.xds.delta import (
    CLUSTER_DRAIN_S,
    MAX_TYPES,
    MAX_WAIT_S,
    DeltaSession,
    Request,
    SyncState,
)
from ztunnel.gateway.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Resource
from ztunnel.gateway.xds.subscription import Memory, ProtocolError

Config = dict[str, dict[str, Resource]]


def backend(name: str, content: str = "") -> tuple[Resource, Resource]:
    return cluster(name, content), endpoints(name, content)


def shop(version: str = "") -> Config:
    return config(*backend("a", version), routes("web", "a"), listener("l", web="routes:web"))


def connected(wanted: Config, envoy: FakeEnvoy | None = None) -> FakeEnvoy:
    envoy = envoy or FakeEnvoy()
    envoy.connect()
    envoy.session.set_config(wanted)
    envoy.run()
    return envoy


def update(envoy: FakeEnvoy, wanted: Config) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Set another configuration; returns the responses."""
    envoy.journal.clear()
    envoy.session.set_config(wanted)
    envoy.run()
    return [(url, names, removed) for url, names, removed, _ in envoy.journal]


def test_envoy_gets_the_configuration_in_dependency_order() -> None:
    envoy = connected(shop())
    assert [url for url, *_ in envoy.journal] == [CLUSTER, ENDPOINTS, LISTENER, ROUTES]
    assert envoy.has == shop()
    assert envoy.session.is_synced
    assert {each.state for each in envoy.session.statuses()} == {SyncState.SYNCED}


def test_nothing_is_sent_before_there_is_a_configuration() -> None:
    envoy = FakeEnvoy()
    envoy.connect()
    assert envoy.run() == 0


def test_empty_configuration_is_sent_so_that_envoy_gets_ready() -> None:
    envoy = connected(config())
    assert [url for url, *_ in envoy.journal] == [CLUSTER, LISTENER]


def test_only_what_changed_is_sent() -> None:
    envoy = connected(shop())
    changed = config(
        cluster("a"), endpoints("a", "2"), routes("web", "a"), listener("l", web="routes:web")
    )
    assert update(envoy, changed) == [(ENDPOINTS, ("a",), ())]


def test_new_route_waits_for_its_cluster_and_the_clusters_endpoints() -> None:
    envoy = connected(shop())
    wanted = config(
        *backend("a"), *backend("b"), routes("web", "b"), listener("l", web="routes:web")
    )
    sent = update(envoy, wanted)
    assert sent == [
        (CLUSTER, ("b",), ()),
        (ENDPOINTS, ("b",), ()),
        (ROUTES, ("web",), ()),
    ]
    assert not envoy.broken


def test_cluster_is_removed_after_the_route_that_used_it() -> None:
    envoy = connected(shop())
    wanted = config(*backend("b"), routes("web", "b"), listener("l", web="routes:web"))
    sent = update(envoy, wanted)
    order = [url for url, *_ in sent]
    assert sent[order.index(ROUTES) + 1] == (CLUSTER, (), ("a",))
    assert not envoy.broken
    assert envoy.has == wanted


def test_cluster_without_references_is_kept_while_connections_may_use_it() -> None:
    envoy = connected(shop())
    without = config(*backend("b"), routes("web", "b"), listener("l", web="routes:web"))
    envoy.session.set_config(without)
    removed_at = None
    for now in range(int(CLUSTER_DRAIN_S + MAX_WAIT_S) + 2):
        for response in envoy.session.responses(float(now)):
            if response.removed:
                assert (response.type_url, response.removed) == (CLUSTER, ("a",))
                removed_at = now
            envoy.session.receive(Request(response.type_url, nonce=response.nonce))
    assert removed_at is not None
    assert removed_at >= CLUSTER_DRAIN_S


def test_cluster_that_is_used_again_is_not_removed() -> None:
    envoy = connected(shop())
    envoy.session.set_config(config(listener("l", web="routes:web"), routes("web", "a")))
    for now in range(3):
        for response in envoy.session.responses(float(now)):
            envoy.session.receive(Request(response.type_url, nonce=response.nonce))
    envoy.session.set_config(shop())
    assert list(envoy.session.responses(100.0)) == []


def test_changed_cluster_gets_its_endpoints_again() -> None:
    envoy = connected(shop())
    wanted = config(
        cluster("a", "2"), endpoints("a"), routes("web", "a"), listener("l", web="routes:web")
    )
    assert update(envoy, wanted) == [(CLUSTER, ("a",), ()), (ENDPOINTS, ("a",), ())]


def test_endpoints_follow_a_changed_cluster_before_envoy_answers() -> None:
    """Envoy answers once the cluster is warm, and it gets warm with endpoints only."""
    envoy = connected(shop())
    changed = (cluster("a", "2"), routes("web", "a"), listener("l", web="routes:web"))
    envoy.session.set_config(config(*changed, endpoints("a")))
    found = [(each.type_url, each.nonce) for each in envoy.session.responses(envoy.now)]
    assert [type_url for type_url, _ in found] == [CLUSTER, ENDPOINTS]
    (_, first), (_, second) = found
    envoy.session.receive(Request(ENDPOINTS, nonce=second))
    envoy.session.receive(Request(CLUSTER, nonce=first))
    assert list(envoy.session.responses(envoy.now)) == []
    assert envoy.session.is_synced


def test_endpoints_that_were_sent_before_a_changed_cluster_are_sent_again() -> None:
    envoy = connected(shop())
    others = (routes("web", "a"), listener("l", web="routes:web"))
    envoy.session.set_config(config(cluster("a"), endpoints("a", "2"), *others))
    (early,) = envoy.session.responses(envoy.now)
    envoy.session.set_config(config(cluster("a", "2"), endpoints("a", "2"), *others))
    (changed,) = envoy.session.responses(envoy.now)
    assert changed.type_url == CLUSTER
    envoy.session.receive(Request(ENDPOINTS, nonce=early.nonce))
    (again,) = envoy.session.responses(envoy.now)
    assert (again.type_url, [each.name for each in again.resources]) == (ENDPOINTS, ["a"])


def test_requested_resource_that_does_not_exist_is_reported_as_removed() -> None:
    envoy = connected(config(cluster("a"), listener("l", web="routes:none")))
    assert (ENDPOINTS, (), ("a",), True) in envoy.journal
    assert (ROUTES, (), ("none",), True) in envoy.journal
    assert envoy.session.is_synced


def test_reconnecting_envoy_gets_nothing_that_it_has() -> None:
    envoy = connected(shop())
    envoy.journal.clear()
    envoy.connect()
    envoy.session.set_config(shop())
    envoy.run()
    assert envoy.journal == []
    assert envoy.session.is_synced


def test_reconnecting_envoy_loses_what_was_removed_meanwhile() -> None:
    envoy = connected(shop())
    envoy.connect()
    assert update(envoy, config())[0] == (LISTENER, (), ("l",))
    assert envoy.has == config()


def test_a_stage_waits_for_a_cold_cluster_for_a_limited_time() -> None:
    envoy = FakeEnvoy()
    envoy.connect()
    envoy.session.set_config(shop())
    (first,) = list(envoy.session.responses(0.0))
    envoy.session.receive(Request(CLUSTER, nonce=first.nonce))  # and never asks for endpoints
    assert list(envoy.session.responses(1.0)) == []
    assert envoy.session.wait_until == MAX_WAIT_S  # since the listener was blocked at 0.0
    (late,) = list(envoy.session.responses(MAX_WAIT_S))
    assert late.type_url == LISTENER


def test_one_invalid_resource_of_many_is_isolated() -> None:
    names = [f"c{number:02}" for number in range(20)]
    wanted = config(*(cluster(name) for name in names))
    envoy = connected(wanted, FakeEnvoy(lambda each: each.name != "c13"))
    assert envoy.has[CLUSTER].keys() == set(names) - {"c13"}
    ((url, rejection),) = envoy.session.rejected()
    assert (url, rejection.name) == (CLUSTER, "c13")
    assert rejection.message == "invalid: c13"
    assert envoy.session.is_synced


def test_rejected_resource_is_sent_again_only_when_it_changes() -> None:
    envoy = connected(shop(), FakeEnvoy(lambda each: each.head != b"a=bad"))
    good = envoy.has[CLUSTER]["a"]
    bad = shop() | {CLUSTER: {"a": cluster("a", "bad")}}
    assert update(envoy, bad) == [(CLUSTER, ("a",), ()), (ENDPOINTS, ("a",), ())]
    assert update(envoy, dict(bad)) == []
    assert envoy.has[CLUSTER]["a"] == good
    assert update(envoy, shop()) == []  # it never lost the last good version
    assert list(envoy.session.rejected()) == []


def test_invalid_chain_does_not_keep_other_chains_from_changing() -> None:
    def is_valid(each: Resource) -> bool:
        return b"bad" not in each.parts.values()

    envoy = connected(config(listener("l", a="1", b="1", c="1")), FakeEnvoy(is_valid))
    update(envoy, config(listener("l", a="2", b="bad", c="2", d="1")))
    assert envoy.has[LISTENER]["l"].parts == {"a": b"2", "b": b"1", "c": b"2", "d": b"1"}
    ((url, rejection),) = envoy.session.rejected()
    assert (url, rejection.name, rejection.part) == (LISTENER, "l", "b")

    sent = update(envoy, config(listener("l", a="3", b="bad", c="2", d="1")))
    assert sent == [(LISTENER, ("l",), ())], "the invalid chain is known"
    assert envoy.has[LISTENER]["l"].parts["a"] == b"3"

    update(envoy, config(listener("l", a="3", b="2", c="2", d="1")))
    assert envoy.has[LISTENER]["l"].parts["b"] == b"2"
    assert list(envoy.session.rejected()) == []


def test_new_invalid_chain_is_left_out() -> None:
    envoy = connected(
        config(listener("l", a="1", b="bad")),
        FakeEnvoy(lambda each: b"bad" not in each.parts.values()),
    )
    assert envoy.has[LISTENER]["l"].parts == {"a": b"1"}


def test_invalid_chain_is_remembered_when_envoy_reconnects() -> None:
    memory: dict[str, Memory] = {}
    envoy = FakeEnvoy(lambda each: b"bad" not in each.parts.values())
    wanted = config(listener("l", a="1", b="bad"))
    for _ in range(2):
        envoy.journal.clear()
        envoy.connect(memory)
        envoy.session.set_config(wanted)
        envoy.run()
    assert envoy.journal == [(CLUSTER, (), (), True)]  # there is no cluster
    assert [each.part for _, each in envoy.session.rejected()] == ["b"]


def test_restarted_server_drops_no_other_chain_to_find_an_invalid_one() -> None:
    envoy = FakeEnvoy(lambda each: b"bad" not in each.parts.values())
    connected(config(listener("l", a="1", b="1", c="1")), envoy)
    seen: list[set[str]] = []
    reject = envoy.is_valid

    def record(each: Resource) -> bool:
        if each.parts and reject(each):
            seen.append(set(each.parts))
        return reject(each)

    envoy.is_valid = record
    envoy.connect()  # a new server
    update(envoy, config(listener("l", a="1", b="bad", c="1", d="1")))
    assert all({"a", "c"} <= each for each in seen)
    assert envoy.has[LISTENER]["l"].parts.keys() == {"a", "c", "d"}


def test_only_changed_chain_is_known_to_be_invalid_at_once() -> None:
    envoy = FakeEnvoy(lambda each: b"bad" not in each.parts.values())
    connected(config(listener("l", a="1", b="1")), envoy)
    sent = update(envoy, config(listener("l", a="1", b="bad")))
    assert sent == [(LISTENER, ("l",), ())]
    assert [each.part for _, each in envoy.session.rejected()] == ["b"]


@pytest.mark.parametrize(
    "make", [lambda text: cluster("a", text), lambda text: listener("l", a=text)]
)
def test_late_rejection_does_not_concern_a_newer_version(
    make: Callable[[str], Resource],
) -> None:
    envoy = connected(config(make("1")))
    envoy.session.set_config(config(make("2")))
    (old,) = list(envoy.session.responses(0.0))
    envoy.session.set_config(config(make("3")))
    envoy.session.receive(Request(old.type_url, nonce=old.nonce, error="no"))
    assert list(envoy.session.rejected()) == []
    envoy.run()
    name = old.resources[0].name
    assert envoy.has[old.type_url][name] == make("3")


def test_old_nonce_changes_nothing() -> None:
    envoy = connected(shop())
    envoy.session.receive(Request(CLUSTER, nonce="dead", error="late"))
    assert list(envoy.session.rejected()) == []
    assert envoy.run() == 0


def test_number_of_types_is_bounded() -> None:
    session = DeltaSession()
    for number in range(MAX_TYPES):
        session.receive(Request(f"type/{number}"))
    with pytest.raises(ProtocolError):
        session.receive(Request("type/more"))


CONTENTS = st.sampled_from(["1", "2", "bad"])
NAMES = st.sampled_from("abcd")


@st.composite
def configs(draw: st.DrawFn) -> Config:
    clusters = draw(st.dictionaries(NAMES, CONTENTS, max_size=4))
    usable = sorted(clusters) or [""]
    table = draw(st.dictionaries(st.sampled_from(["r", "s"]), st.sampled_from(usable)))
    chains = {name: f"routes:{name}" for name in table}
    chains |= draw(st.dictionaries(st.sampled_from("wxyz"), CONTENTS, max_size=4))
    return config(
        *(cluster(name, content) for name, content in clusters.items()),
        *(endpoints(name) for name in clusters),
        *(routes(name, target) for name, target in table.items()),
        listener("l", **chains),
    )


def is_valid(each: Resource) -> bool:
    return not each.head.endswith(b"=bad") and b"bad" not in each.parts.values()


def _check_valid_part(envoy: FakeEnvoy, wanted: Config) -> None:
    """Envoy has all that is valid, nothing that is invalid, and no cluster beyond."""
    assert envoy.session.is_synced
    for url in (CLUSTER, ENDPOINTS, ROUTES):
        for name, each in wanted[url].items():
            if is_valid(each) and name in envoy.has[url]:
                assert envoy.has[url][name] == each
    assert envoy.has[CLUSTER].keys() <= wanted[CLUSTER].keys()
    valid = {name for name, each in wanted[CLUSTER].items() if is_valid(each)}
    assert valid <= envoy.has[CLUSTER].keys()
    parts, has = wanted[LISTENER]["l"].parts, envoy.has[LISTENER]["l"].parts
    assert {n: p for n, p in has.items() if parts[n] != b"bad"} == {
        n: p for n, p in parts.items() if p != b"bad"
    }
    assert b"bad" not in has.values()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(configs(), st.booleans()), min_size=1, max_size=6))
def test_envoy_always_reaches_the_valid_part_of_the_last_configuration(
    history: list[tuple[Config, bool]],
) -> None:
    memory: dict[str, Memory] = {}
    envoy = FakeEnvoy(is_valid)
    envoy.connect(memory)
    for wanted, reconnects in history:
        if reconnects:
            envoy.connect(memory)
        envoy.session.set_config(wanted)
        envoy.run()
        _check_valid_part(envoy, wanted)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(configs(), st.integers(0, 5)), min_size=1, max_size=6), configs())
def test_changes_while_responses_are_in_flight(
    history: list[tuple[Config, int]], last: Config
) -> None:
    envoy = FakeEnvoy(is_valid)
    envoy.connect()
    for wanted, count in history:
        envoy.session.set_config(wanted)
        envoy.exchange(count)
    envoy.session.set_config(last)
    envoy.run()
    _check_valid_part(envoy, last)


@settings(max_examples=150, deadline=None)
@given(st.lists(configs(), min_size=2, max_size=5))
def test_no_route_refers_to_a_cluster_that_envoy_lacks(history: list[Config]) -> None:
    envoy = FakeEnvoy()
    envoy.connect()
    for wanted in history:
        envoy.session.set_config(wanted)
        envoy.run()
    assert not envoy.broken
