# SPDX-License-Identifier: Apache-2.0
"""The table of UDP flows: idle times, room, who gives way. By plain calls and by hypothesis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.proxy.conntrack.udp_flow_table import IN_USE, ONE_WAY_IDLE, TWO_WAY_IDLE, Flows


def test_an_unanswered_flow_ends_sooner() -> None:
    flows: Flows[str] = Flows()
    flows.add("asked", 0.0)
    flows.add("answered", 0.0)
    flows.answered("answered", 0.0)
    assert flows.expired(ONE_WAY_IDLE - 0.1) == []
    assert flows.expired(ONE_WAY_IDLE) == ["asked"]
    assert flows.expired(TWO_WAY_IDLE) == ["asked", "answered"]


def test_use_keeps_a_flow() -> None:
    flows: Flows[str] = Flows()
    flows.add("a", 0.0)
    flows.used("a", 20.0)
    assert flows.expired(20.0 + ONE_WAY_IDLE - 0.1) == []
    flows.answered("a", 40.0)
    flows.used("a", 50.0)
    assert flows.expired(50.0 + TWO_WAY_IDLE - 0.1) == []
    assert flows.expired(50.0 + TWO_WAY_IDLE) == ["a"]


def test_the_longest_idle_unanswered_flow_gives_way_first() -> None:
    flows: Flows[str] = Flows(limit=3)
    flows.add("old answered", 0.0)
    flows.answered("old answered", 0.0)
    flows.add("unanswered", 1.0)
    flows.add("new", 9.0)
    assert flows.is_full
    assert flows.spare(10.0) == "unanswered"
    flows.remove("unanswered")
    assert flows.spare(10.0) == "old answered"


def test_what_is_in_use_never_gives_way() -> None:
    flows: Flows[str] = Flows(limit=1)
    flows.add("a", 0.0)
    assert flows.spare(IN_USE - 0.1) is None
    assert flows.spare(IN_USE) == "a"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "used", "answered", "remove", "wait"]), st.integers(0, 5)
        ),
        max_size=60,
    )
)
def test_it_agrees_with_a_plain_list_of_times(steps: list[tuple[str, int]]) -> None:
    flows: Flows[int] = Flows(limit=4)
    known: dict[int, tuple[float, bool]] = {}
    now = 0.0
    for step, flow in steps:
        if step == "wait":
            now += 13.0 * flow
        elif step == "add" and flow not in known:
            flows.add(flow, now)
            known[flow] = now, False
        elif step == "used":
            flows.used(flow, now)
            if flow in known:
                known[flow] = now, known[flow][1]
        elif step == "answered":
            flows.answered(flow, now)
            if flow in known:
                known[flow] = now, True
        elif step == "remove":
            flows.remove(flow)
            known.pop(flow, None)
        over = {
            one
            for one, (used, both) in known.items()
            if now - used >= (TWO_WAY_IDLE if both else ONE_WAY_IDLE)
        }
        assert set(flows.expired(now)) == over
        assert set(flows.all()) == set(known)
        assert len(flows) == len(known)
        assert flows.is_full is (len(known) >= 4)
        spare = flows.spare(now)
        idle = [used for used, _ in known.values() if now - used >= IN_USE]
        assert (spare is None) is (not idle)
