# SPDX-License-Identifier: Apache-2.0
"""The signer's list of things to do: nothing twice at once, nothing forgotten."""

from __future__ import annotations

import threading

from ztunnel.controller.workqueue import LONGEST_DELAY, Work


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_added_twice_is_handled_once() -> None:
    work: Work[str] = Work(_Clock())
    work.add("a")
    work.add("a")
    work.add("b")
    assert {work.get(), work.get()} == {"a", "b"}
    work.close()
    assert work.get() is None


def test_item_in_hand_is_not_given_to_another_but_kept_for_later() -> None:
    work: Work[str] = Work(_Clock())
    work.add("a")
    assert work.get() == "a"
    work.add("a")
    work.add("b")
    assert work.get() == "b"
    work.done("a")
    assert work.get() == "a"


def test_failed_item_comes_again_later_each_time_up_to_a_bound() -> None:
    clock = _Clock()
    work: Work[str] = Work(clock)
    work.add("a")
    delays = []
    for _ in range(12):
        assert work.get() == "a"
        delays.append(work.retry("a"))
        clock.now += delays[-1]
    assert delays == sorted(delays)
    assert delays[0] < 1
    assert delays[-1] == LONGEST_DELAY
    assert work.get() == "a"
    work.done("a")
    work.add("a")
    work.get()
    assert work.retry("a") == delays[0]


def test_delayed_item_waits_and_the_earlier_date_counts() -> None:
    clock = _Clock()
    work: Work[str] = Work(clock)
    work.add("late", after=100)
    work.add("late", after=5)
    work.add("late", after=50)
    work.add("now")
    assert work.get() == "now"
    clock.now = 5
    assert work.get() == "late"


def test_waiting_threads_leave_when_it_closes() -> None:
    work: Work[str] = Work()
    got: list[str | None] = []
    threads = [threading.Thread(target=lambda: got.append(work.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    work.close()
    for thread in threads:
        thread.join(10)
    assert got == [None] * 3
