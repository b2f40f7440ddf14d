# SPDX-License-Identifier: Apache-2.0
"""Limits the octets that wait in a worker for applications that do not read.

A share, that of a pod, may hold as many octets as are still free (dynamic thresholds, Choudhury and
Hahne 1998): one pod gets at most half of the budget, two get a third each, and some of it is always
free for others. A share beyond its limit gets no new octets until it returned some.
"""

from __future__ import annotations


class BufferBudget:
    """The budget of one worker, in octets. `used` may exceed `limit` by what `add` forced."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def new_share(self) -> BufferShare:
        """A share that holds nothing."""
        return BufferShare(self)


class BufferShare:
    """What one pod holds of a budget, in octets."""

    __slots__ = ("_budget", "used")

    def __init__(self, budget: BufferBudget) -> None:
        self._budget = budget
        self.used = 0

    @property
    def room(self) -> int:
        """How many octets it may still hold; not positive beyond the limit.

        Each further octet counts twice: it is held, and it is no longer free.
        """
        return (self._budget.limit - self._budget.used - self.used) // 2

    def take(self, n: int) -> int:
        """Hold up to `n` octets more; returns how many."""
        granted = min(n, self.room)
        if granted <= 0:
            return 0
        self.add(granted)
        return granted

    def add(self, n: int) -> None:
        """Hold `n` octets more, which exist already, even beyond the limit."""
        self.used += n
        self._budget.used += n

    def give_back(self, n: int) -> None:
        """Hold `n` octets less."""
        self.used -= n
        self._budget.used -= n
