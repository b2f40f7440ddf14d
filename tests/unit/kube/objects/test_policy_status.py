# SPDX-License-Identifier: Apache-2.0
"""What is written to a policy's status, and when."""

from __future__ import annotations

from typing import Any

import pytest

from ztunnel.kube.objects.policy_status import CONDITION, due, judge

Json = dict[str, Any]
BAD: Json = {"form": []}


def policy(spec: Json, *, kind: str = "AuthorizationPolicy", **status: Any) -> Json:
    metadata = {"namespace": "shop", "name": "p", "uid": "u", "generation": 3}
    return {"kind": kind, "metadata": metadata, "spec": spec, **status}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"rules": [BAD]}, "allows nothing"),
        ({"action": "DENY", "rules": [BAD]}, "all that it selects is denied"),
        ({"action": "AUDIT", "rules": [BAD]}, "no effect"),
    ],
)
def test_a_refused_policy_says_what_is_done_instead(spec: Json, said: str) -> None:
    found = judge(policy(spec))
    assert (found.accepted, found.reason) == (False, "Invalid")
    assert "form" in found.message
    assert said in found.message


def test_a_message_fits_however_long_the_mistake_is() -> None:
    assert len(judge(policy({"x" * 5000: 1})).message) <= 1024


def test_the_same_again_is_not_written() -> None:
    first = due(policy({}), "2026-01-01T00:00:00Z")
    assert first is not None
    assert due(policy({}, status={"conditions": [first]}), "2027-01-01T00:00:00Z") is None


def test_time_is_of_the_last_change_of_mind() -> None:
    accepted = due(policy({}), "then")
    assert accepted is not None
    conditions = [{"type": "Other"}, {**accepted, "observedGeneration": 2}]
    old: Json = {"status": {"conditions": conditions}}
    still = due(policy({}, **old), "now")
    assert still is not None
    assert (still["lastTransitionTime"], still["observedGeneration"]) == ("then", 3)
    refused = due(policy({"rules": [BAD]}, **old), "now")
    assert refused is not None
    assert (refused["status"], refused["lastTransitionTime"]) == ("False", "now")


@pytest.mark.parametrize("status", [None, [], {"conditions": {}}, {"conditions": [1, {"type": 2}]}])
def test_a_status_that_somebody_broke_is_written_anew(status: Any) -> None:
    made = due(policy({}, status=status), "now")
    assert made is not None
    assert made["type"] == CONDITION
