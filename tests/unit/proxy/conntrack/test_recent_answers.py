# SPDX-License-Identifier: Apache-2.0
"""The names of addresses: per pod, shared by processes, of bounded size."""

from __future__ import annotations

import os
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.dns.addresses import V4_MAPPED
from ztunnel.proxy.conntrack.recent_answers import (
    MAX_AGE_S,
    REGIONS,
    SLOTS,
    TABLE_BYTES,
    RecentAnswers,
)

POD, OTHER = 4711, 4712


def packed(ip: str) -> bytes:
    address = ip_address(ip)
    return address.packed if address.version == 6 else V4_MAPPED + address.packed


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_name_is_that_of_the_last_answer() -> None:
    answers = RecentAnswers()
    for ip in ("192.0.2.1", "2001:db8::1"):
        assert answers.name(POD, ip) == ""
        answers.record(POD, packed(ip), "old.example.com")
        answers.record(POD, packed(ip), "new.example.com")
        assert answers.name(POD, ip) == "new.example.com"


def test_pods_do_not_see_names_of_others() -> None:
    answers = RecentAnswers()
    for other in (OTHER, POD + REGIONS):  # the latter shares the region
        answers.record(other, packed("192.0.2.1"), "secret.example.com")
        assert answers.name(POD, "192.0.2.1") == ""


def test_names_expire() -> None:
    clock = Clock()
    answers = RecentAnswers(clock)
    answers.record(POD, packed("192.0.2.1"), "a.example.com")
    clock.now += MAX_AGE_S + 1
    assert answers.name(POD, "192.0.2.1") == ""
    assert not answers.record(POD, packed("192.0.2.2"), "b.example.com")


def test_pod_with_many_names_evicts_its_own_only() -> None:
    answers = RecentAnswers()
    answers.record(OTHER, packed("192.0.2.1"), "kept.example.com")
    evicted = sum(
        answers.record(
            POD, packed(f"198.51.{number // 250}.{number % 250}"), f"n{number}.example.com"
        )
        for number in range(10 * SLOTS)
    )
    assert 8 * SLOTS < evicted < 10 * SLOTS
    assert answers.name(OTHER, "192.0.2.1") == "kept.example.com"
    assert len(answers._memory) == TABLE_BYTES


def test_processes_share_the_table() -> None:
    answers = RecentAnswers()
    pid = os.fork()
    if pid == 0:
        answers.record(POD, packed("192.0.2.1"), "a.example.com")
        os._exit(0)
    os.waitpid(pid, 0)
    assert answers.name(POD, "192.0.2.1") == "a.example.com"


@given(st.integers(0, 289), st.integers(1, 255))
def test_damaged_slot_counts_as_empty(offset: int, flip: int) -> None:
    answers = RecentAnswers()
    answers.record(POD, packed("192.0.2.1"), "a.example.com")
    at = answers._memory.find(b"a.example.com") - 37
    answers._memory[at + offset] ^= flip
    assert answers.name(POD, "192.0.2.1") in ("", "a.example.com")
    answers._memory[at + offset] ^= flip
    assert answers.name(POD, "192.0.2.1") == "a.example.com"
