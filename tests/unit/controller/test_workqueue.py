# SPDX-License-Identifier: Apache-2.0
"""Work queue: no item is processed twice at once, none is lost."""

from __future__ import annotations

import threading

from ztunnel.controller.workqueue import MAX_BACKOFF_S, WorkQueue


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_item_added_twice_is_processed_once() -> None:
    queue: WorkQueue[str] = WorkQueue(_Clock())
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert {queue.get(), queue.get()} == {"a", "b"}
    queue.close()
    assert queue.get() is None


def test_item_added_while_in_progress_is_processed_again_later() -> None:
    queue: WorkQueue[str] = WorkQueue(_Clock())
    queue.add("a")
    assert queue.get() == "a"
    queue.add("a")
    queue.add("b")
    assert queue.get() == "b"
    queue.done("a")
    assert queue.get() == "a"


def test_failed_item_is_retried_with_bounded_backoff() -> None:
    clock = _Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a")
    delays = []
    for _ in range(12):
        assert queue.get() == "a"
        delays.append(queue.retry("a"))
        clock.now += delays[-1]
    assert delays == sorted(delays)
    assert delays[0] < 1
    assert delays[-1] == MAX_BACKOFF_S
    assert queue.get() == "a"
    queue.done("a")
    queue.add("a")
    queue.get()
    assert queue.retry("a") == delays[0]


def test_earliest_due_time_of_delayed_item_counts() -> None:
    clock = _Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("late", after_s=100)
    queue.add("late", after_s=5)
    queue.add("late", after_s=50)
    queue.add("now")
    assert queue.get() == "now"
    clock.now = 5
    assert queue.get() == "late"


def test_close_wakes_waiting_threads() -> None:
    queue: WorkQueue[str] = WorkQueue()
    got: list[str | None] = []
    threads = [threading.Thread(target=lambda: got.append(queue.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(10)
    assert got == [None] * 3
