# SPDX-License-Identifier: Apache-2.0
"""The status condition of policies."""

from __future__ import annotations

from typing import Any

import pytest

from ztunnel.kube.objects.policy_status import CONDITION, evaluate, pending_condition

Json = dict[str, Any]
BAD: Json = {"form": []}


def policy(spec: Json, *, kind: str = "AuthorizationPolicy", **status: Any) -> Json:
    metadata = {"namespace": "shop", "name": "p", "uid": "u", "generation": 3}
    return {"kind": kind, "metadata": metadata, "spec": spec, **status}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"rules": [BAD]}, "allows nothing"),
        ({"action": "DENY", "rules": [BAD]}, "all traffic that it selects is denied"),
        ({"action": "AUDIT", "rules": [BAD]}, "no effect"),
    ],
)
def test_condition_of_rejected_policy_states_fallback(spec: Json, text: str) -> None:
    found = evaluate(policy(spec))
    assert (found.accepted, found.reason) == (False, "Invalid")
    assert "form" in found.message
    assert text in found.message


def test_message_is_truncated_to_limit() -> None:
    condition = pending_condition(policy({"x" * 5000: 1}), "now")
    assert condition is not None
    assert len(str(condition["message"])) == 1024


def test_unchanged_condition_is_not_written() -> None:
    first = pending_condition(policy({}), "2026-01-01T00:00:00Z")
    assert first is not None
    assert (
        pending_condition(policy({}, status={"conditions": [first]}), "2027-01-01T00:00:00Z")
        is None
    )


def test_transition_time_changes_with_status_only() -> None:
    accepted = pending_condition(policy({}), "then")
    assert accepted is not None
    conditions = [{"type": "Other"}, {**accepted, "observedGeneration": 2}]
    old: Json = {"status": {"conditions": conditions}}
    still = pending_condition(policy({}, **old), "now")
    assert still is not None
    assert (still["lastTransitionTime"], still["observedGeneration"]) == ("then", 3)
    refused = pending_condition(policy({"rules": [BAD]}, **old), "now")
    assert refused is not None
    assert (refused["status"], refused["lastTransitionTime"]) == ("False", "now")


@pytest.mark.parametrize("status", [None, [], {"conditions": {}}, {"conditions": [1, {"type": 2}]}])
def test_malformed_status_is_overwritten(status: Any) -> None:
    written = pending_condition(policy({}, status=status), "now")
    assert written is not None
    assert written["type"] == CONDITION
