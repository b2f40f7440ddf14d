# SPDX-License-Identifier: Apache-2.0
"""The UDP flow table: idle timeouts, limit, eviction."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.proxy.conntrack.udp_flow_table import (
    IN_USE_S,
    ONE_WAY_IDLE_TIMEOUT_S,
    TWO_WAY_IDLE_TIMEOUT_S,
    UdpFlowTable,
)


def test_flow_without_reply_expires_sooner() -> None:
    flows: UdpFlowTable[str] = UdpFlowTable()
    flows.add("asked", 0.0)
    flows.add("answered", 0.0)
    flows.touch_reply("answered", 0.0)
    assert flows.expired(ONE_WAY_IDLE_TIMEOUT_S - 0.1) == []
    assert flows.expired(ONE_WAY_IDLE_TIMEOUT_S) == ["asked"]
    assert flows.expired(TWO_WAY_IDLE_TIMEOUT_S) == ["asked", "answered"]


def test_datagrams_extend_a_flow() -> None:
    flows: UdpFlowTable[str] = UdpFlowTable()
    flows.add("a", 0.0)
    flows.touch("a", 20.0)
    assert flows.expired(20.0 + ONE_WAY_IDLE_TIMEOUT_S - 0.1) == []
    flows.touch_reply("a", 40.0)
    flows.touch("a", 50.0)
    assert flows.expired(50.0 + TWO_WAY_IDLE_TIMEOUT_S - 0.1) == []
    assert flows.expired(50.0 + TWO_WAY_IDLE_TIMEOUT_S) == ["a"]


def test_longest_idle_flow_without_reply_is_evicted_first() -> None:
    flows: UdpFlowTable[str] = UdpFlowTable(limit=3)
    flows.add("old answered", 0.0)
    flows.touch_reply("old answered", 0.0)
    flows.add("unanswered", 1.0)
    flows.add("new", 9.0)
    assert flows.is_full
    assert flows.eviction_candidate(10.0) == "unanswered"
    flows.remove("unanswered")
    assert flows.eviction_candidate(10.0) == "old answered"


def test_flow_in_use_is_never_evicted() -> None:
    flows: UdpFlowTable[str] = UdpFlowTable(limit=1)
    flows.add("a", 0.0)
    assert flows.eviction_candidate(IN_USE_S - 0.1) is None
    assert flows.eviction_candidate(IN_USE_S) == "a"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "used", "answered", "remove", "wait"]), st.integers(0, 5)
        ),
        max_size=60,
    )
)
def test_table_matches_reference_model(steps: list[tuple[str, int]]) -> None:
    flows: UdpFlowTable[int] = UdpFlowTable(limit=4)
    known: dict[int, tuple[float, bool]] = {}
    now = 0.0
    for step, flow in steps:
        if step == "wait":
            now += 13.0 * flow
        elif step == "add" and flow not in known:
            flows.add(flow, now)
            known[flow] = now, False
        elif step == "used":
            flows.touch(flow, now)
            if flow in known:
                known[flow] = now, known[flow][1]
        elif step == "answered":
            flows.touch_reply(flow, now)
            if flow in known:
                known[flow] = now, True
        elif step == "remove":
            flows.remove(flow)
            known.pop(flow, None)
        over = {
            one
            for one, (used, both) in known.items()
            if now - used >= (TWO_WAY_IDLE_TIMEOUT_S if both else ONE_WAY_IDLE_TIMEOUT_S)
        }
        assert set(flows.expired(now)) == over
        assert set(flows.all()) == set(known)
        assert len(flows) == len(known)
        assert flows.is_full is (len(known) >= 4)
        spare = flows.eviction_candidate(now)
        idle = [used for used, _ in known.values() if now - used >= IN_USE_S]
        assert (spare is None) is (not idle)
