# SPDX-License-Identifier: Apache-2.0
"""Tells the agent what the worker counted: every second, when asked, and at the end.

What was told stays here until the agent has taken it, and is told again to the next agent. While
nobody listens the counts just grow.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable

from ztunnel.ipc.messages import Count, CounterReport, DnsCounted

EVERY = 1.0  # seconds
ROWS = 500  # of one message: a link packet holds 1 MiB, a row some hundred bytes
MOST_PENDING = 64  # messages an agent may leave unanswered


class CounterReporter:
    """One per worker process."""

    def __init__(
        self,
        send: Callable[[CounterReport], None],
        take: Callable[[], list[Count]],
        take_dns: Callable[[], DnsCounted | None] = lambda: None,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`told` is called with the number of the last message, each time that all is told."""
        self._send = send
        self._take = take
        self._take_dns = take_dns
        self._told = told
        self.instance = secrets.randbits(63)  # workers are forked: they share other generators
        self._number = 0
        self._pending: deque[CounterReport] = deque()

    @property
    def pending(self) -> list[CounterReport]:
        """What no agent has taken yet, oldest first: the first that a new agent hears."""
        return list(self._pending)

    def tell(self) -> None:
        """Tell what is new."""
        if len(self._pending) >= MOST_PENDING:
            return
        rows, dns = self._take(), self._take_dns()
        for start in range(0, max(len(rows), dns is not None), ROWS):
            self._number += 1
            told = CounterReport(
                instance=self.instance,
                number=self._number,
                rows=tuple(rows[start : start + ROWS]),
                dns=None if start else dns,
            )
            self._pending.append(told)
            self._send(told)
        self._told(self._number)

    def taken(self, number: int) -> None:
        """The agent has counted all up to this."""
        while self._pending and self._pending[0].number <= number:
            self._pending.popleft()
