# SPDX-License-Identifier: Apache-2.0
"""Drops of carried UDP add up over workers that come, go and do not answer."""

from __future__ import annotations

from ztunnel.agent.workers.session import WorkerAnswer
from ztunnel.agent.workers.udp_drops import UdpDropCounters


def answer(pid: int, dropped: int, refused: int = 0) -> WorkerAnswer:
    return WorkerAnswer(0, pid, {"udp_dropped": dropped, "udp_refused": refused})


def test_sums_only_grow() -> None:
    drops = UdpDropCounters()
    drops.take([answer(1, 5, 1), answer(2, 3)])
    drops.take([answer(1, 7, 1), WorkerAnswer(1, 2, None)])
    assert drops.sums == {"datagram": 10, "flow": 1}
    drops.take([answer(3, 2)])  # both are gone, another came
    assert drops.sums == {"datagram": 12, "flow": 1}
    drops.take([answer(3, 1)])  # a pid that is another's by now
    assert drops.sums == {"datagram": 12, "flow": 1}
