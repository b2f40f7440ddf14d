# SPDX-License-Identifier: Apache-2.0
"""Streams that wait to send are served in order, once each, and only while they exist."""

from __future__ import annotations

from typing import cast

from ztunnel.proxy.tunnel.interfaces import TunnelStream
from ztunnel.proxy.tunnel.send_queue import SendQueue


class Waiting:
    """A stream with an ID and nothing else: the queue calls none of its methods."""

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id


def stream(stream_id: int) -> TunnelStream:
    return cast("TunnelStream", Waiting(stream_id))


def pop_all(queue: SendQueue) -> list[TunnelStream | None]:
    return [queue.pop_blocked() for _ in range(len(queue))]


def test_blocked_streams_are_served_in_order_and_once() -> None:
    queue, one, two = SendQueue(), stream(1), stream(3)
    for waiting in (one, two, one):
        queue.add_blocked(waiting)
    assert pop_all(queue) == [one, two]
    assert len(queue) == 0


def test_served_stream_may_wait_again_behind_the_others() -> None:
    queue, one, two = SendQueue(), stream(1), stream(3)
    queue.add_blocked(one)
    queue.add_blocked(two)
    assert queue.pop_blocked() is one
    queue.add_blocked(one)
    assert pop_all(queue) == [two, one]


def test_removed_stream_is_not_served() -> None:
    queue, one, two = SendQueue(), stream(1), stream(3)
    queue.add_blocked(one)
    queue.add_no_window(one)
    queue.add_blocked(two)
    queue.remove(1, one)
    assert pop_all(queue) == [None, two]
    assert queue.pop_no_window(0) == []


def test_window_of_a_stream_unblocks_that_stream_only() -> None:
    queue, one, two = SendQueue(), stream(1), stream(3)
    queue.add_no_window(one)
    queue.add_no_window(two)
    assert queue.pop_no_window(5) == []
    assert queue.pop_no_window(1) == [one]
    assert queue.pop_no_window(1) == []
    assert queue.pop_no_window(3) == [two]


def test_window_of_the_connection_unblocks_all_streams() -> None:
    queue, one, two = SendQueue(), stream(1), stream(3)
    queue.add_no_window(one)
    queue.add_no_window(two)
    assert queue.pop_no_window(0) == [one, two]
    assert queue.pop_no_window(0) == []
