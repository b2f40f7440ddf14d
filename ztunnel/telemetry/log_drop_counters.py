# SPDX-License-Identifier: Apache-2.0
"""Counters of log lines that this process did not write, by reason.

A process has one object, because it has one standard error. Workers report what it holds to the
agent; the agent's own counts and those of the workers are the node's totals.
"""

from __future__ import annotations

import os
import threading
from enum import StrEnum

from ztunnel.ipc.messages import LogDropCounts


class LogDropReason(StrEnum):
    """Values of the label `reason` of `ztunnel_log_lines_dropped_total`."""

    QUEUE_FULL = "queue_full"  # the reader of the log is slower than the process
    WRITE_FAILED = "write_failed"  # the disk is full, or the reader is gone
    RATE_LIMIT = "rate_limit"  # an access log line beyond the limit


class LogDropCounters:
    """Counters that only grow until they are flushed. The log's thread may count, too."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start at zero, as a forked process does: the lock may have been held at the fork."""
        self._lock = threading.Lock()
        self.by_reason = dict.fromkeys(LogDropReason, 0)

    def count(self, reason: LogDropReason, lines: int = 1) -> None:
        """Count dropped lines."""
        with self._lock:
            self.by_reason[reason] += lines

    def flush(self) -> LogDropCounts | None:
        """Return the counts since the last flush and reset them; None if there are none."""
        with self._lock:
            counts = LogDropCounts(tuple(self.by_reason.values()))
            self.by_reason = dict.fromkeys(LogDropReason, 0)
        return counts if any(counts.by_reason) else None

    def add(self, counts: LogDropCounts) -> None:
        """Add a worker's counts."""
        for reason, count in zip(LogDropReason, counts.by_reason, strict=False):
            self.count(reason, count)


log_drops = LogDropCounters()  # of this process
os.register_at_fork(after_in_child=log_drops.reset)
