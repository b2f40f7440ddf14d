# SPDX-License-Identifier: Apache-2.0
"""Conditions are stable, and entries of other controllers are kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.status.conditions import Condition, has_conditions, render_conditions
from ztunnel.l7.status.entries import PARENTS, Controllers, Entry, merge_entries
from ztunnel.l7.status.facts import GatewayFacts, ip_addresses
from ztunnel.l7.status.gateway import class_conditions, gateway_status
from ztunnel.l7.status.policies import policy_condition
from ztunnel.l7.status.service import waypoint_bound

Json = dict[str, Any]
OURS, OTHER = "ztunnel.dev/waypoint-controller", "example.com/other"
THEN, NOW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"
CONTROLLERS = Controllers(OURS, "ztunnel.dev/gateway-controller")
ACCEPTED = Condition("Accepted", True, "Accepted", "fine")
HBONE = {"name": "mesh", "port": 15008, "protocol": "HBONE"}


def test_transition_time_changes_with_the_status_only() -> None:
    before = render_conditions([ACCEPTED], [], 1, THEN)
    (same,) = render_conditions([Condition("Accepted", True, "Accepted", "new")], before, 2, NOW)
    assert (same["lastTransitionTime"], same["observedGeneration"]) == (THEN, 2)
    (changed,) = render_conditions([Condition("Accepted", False, "Invalid")], before, 2, NOW)
    assert changed["lastTransitionTime"] == NOW


def test_conditions_of_others_do_not_cause_a_write() -> None:
    ours = render_conditions([ACCEPTED], [], 1, THEN)
    assert has_conditions([{"type": "Theirs", "status": "True"}, *ours], ours)
    assert not has_conditions([{"type": "Theirs", "status": "True"}], ours)


@pytest.mark.parametrize("before", [None, "text", [1, None], [{"type": 3}], {"type": "Accepted"}])
def test_malformed_conditions_are_replaced(before: object) -> None:
    assert render_conditions([ACCEPTED], before, 1, NOW)[0]["lastTransitionTime"] == NOW
    assert not has_conditions(before, render_conditions([ACCEPTED], before, 1, NOW))


def test_messages_are_limited() -> None:
    (found,) = render_conditions([Condition("A", True, "A", "x" * 5000)], [], 1, NOW)
    assert len(found["message"]) == 1024


_NAMES = st.sampled_from(["a", "b", "c"])
_PARENTS = st.lists(st.tuples(st.sampled_from([OURS, OTHER]), _NAMES), max_size=6, unique=True)


@given(_PARENTS, st.lists(_NAMES, max_size=3, unique=True))
def test_merging_parents_converges_and_keeps_others(
    present: list[tuple[str, str]], wanted: list[str]
) -> None:
    current = [
        {"parentRef": {"name": name}, "controllerName": owner, "conditions": []}
        for owner, name in present
    ]
    ours = [Entry({"name": name}, (ACCEPTED,)) for name in wanted]
    merged = merge_entries(PARENTS, current, ours, CONTROLLERS, generation=1, now=NOW)
    result = current if merged is None else merged
    others = [each for each in current if each["controllerName"] == OTHER]
    assert [each for each in result if each["controllerName"] == OTHER] == others
    own = [each["parentRef"] for each in result if each["controllerName"] == OURS]
    assert sorted(map(str, own)) == sorted(str({"name": name}) for name in wanted)
    assert merge_entries(PARENTS, result, ours, CONTROLLERS, generation=1, now="later") is None


def gateway(**spec: Any) -> L7Object:
    metadata = {"name": "way", "namespace": "shop", "generation": 4}
    return l7_object(
        {"kind": "Gateway", "metadata": metadata, "spec": {"listeners": [HBONE], **spec}}
    )


def reasons(status: Json) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


@pytest.mark.parametrize(
    ("facts", "programmed"),
    [
        (GatewayFacts(addresses=ip_addresses(["10.0.0.1"]), ready=1), ("True", "Programmed")),
        (GatewayFacts(addresses=ip_addresses(["10.0.0.1"]), ready=0), ("False", "Pending")),
        (GatewayFacts(ready=1), ("False", "AddressNotAssigned")),
        (
            GatewayFacts(addresses=ip_addresses(["10.0.0.1"]), ready=1, conflict="taken"),
            ("False", "Invalid"),
        ),
    ],
)
def test_gateway_is_programmed_when_it_can_serve(
    facts: GatewayFacts, programmed: tuple[str, str]
) -> None:
    status = gateway_status(gateway(), facts, {}, NOW)
    assert reasons(status) == {"Accepted": ("True", "Accepted"), "Programmed": programmed}
    listener = reasons(status["listeners"][0])
    assert listener["Programmed"][0] == programmed[0]
    assert listener["Accepted"] == ("True", "Accepted")


def test_listeners_of_other_protocols_are_not_accepted() -> None:
    web = {"name": "web", "port": 80, "protocol": "HTTP"}
    facts = GatewayFacts(addresses=ip_addresses(["10.0.0.1"]), ready=1)
    status = gateway_status(gateway(listeners=[HBONE, web]), facts, {}, NOW)
    assert reasons(status)["Accepted"] == ("True", "ListenersNotValid")
    assert reasons(status["listeners"][1])["Accepted"] == ("False", "UnsupportedProtocol")


@pytest.mark.parametrize(
    ("waypoint", "error", "exists", "ready", "reason"),
    [
        ("shop/way", "", True, True, "WaypointAccepted"),
        ("shop/way", "", True, False, "WaypointIsNotReady"),
        ("shop/way", "not admitted", True, True, "AttachmentDenied"),
        ("shop/way", "waypoint shop/way does not exist", False, False, "WaypointMissing"),
    ],
)
def test_waypoint_bound(waypoint: str, error: str, exists: bool, ready: bool, reason: str) -> None:
    found = waypoint_bound(waypoint, error, exists=exists, ready=ready)
    assert found is not None
    assert (found.reason, found.status) == (reason, reason == "WaypointAccepted")


def test_service_without_waypoint_has_no_condition() -> None:
    assert waypoint_bound("", "", exists=False, ready=False) is None


def problem(severity: Severity, message: str = "x") -> Problem:
    return Problem(
        kind="VirtualService", namespace="a", name="b", message=message, severity=severity
    )


def test_policy_condition_is_false_on_errors_only() -> None:
    ignored, error = problem(Severity.IGNORED), problem(Severity.ERROR, "bad")
    assert policy_condition([]).reason == "Accepted"
    assert (policy_condition([ignored]).status, policy_condition([ignored]).reason) == (
        True,
        "UnsupportedValue",
    )
    found = policy_condition([ignored, error])
    assert (found.status, found.reason, found.message) == (False, "Invalid", "bad")


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("v1.6.3", (True, "SupportedVersion")),
        ("v1.60.0", (False, "UnsupportedVersion")),
        ("v1.2.0", (False, "UnsupportedVersion")),
    ],
)
def test_class_states_whether_the_installed_api_is_supported(
    version: str, state: tuple[bool, str]
) -> None:
    accepted, found = class_conditions(OURS, version)
    assert accepted.status
    assert (found.type, found.status, found.reason) == ("SupportedVersion", *state)
    assert class_conditions(OURS) == (accepted,)
