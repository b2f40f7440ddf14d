# SPDX-License-Identifier: Apache-2.0
"""Decides whether a connection is written to the access log.

    rule of the pod's namespace, else the general rule --> level, sampling of successes
        --> limit, when a line is written

Failed and refused connections are never sampled. The limit of lines per second protects the
node's disk. Successful and failed connections have one each, so that traffic does not hide
failures. What it drops is counted in `log_drops`.
"""

from __future__ import annotations

import random
import time

from ztunnel.hbone.rate_limit import TokenBucket
from ztunnel.ipc.messages import LogConfig, LogLevel
from ztunnel.telemetry.log_drop_counters import LogDropReason, log_drops

_ALL = frozenset({LogLevel.DEBUG, LogLevel.INFO})
_FAILURES = _ALL | {LogLevel.WARNING}

BURST_S = 10  # an idle process may write the lines of so many seconds at once


class AccessLogLimiter:
    """Limits the lines of one process. Call `admits` once for each line that is to be written."""

    def __init__(self) -> None:
        self._lines_per_s = 0
        self._buckets: dict[bool, TokenBucket] = {}

    def admits(self, lines_per_s: int, *, failed: bool) -> bool:
        """Whether a line is within the limit; counts it if it is not."""
        if not lines_per_s:
            return True
        now = time.monotonic()
        if lines_per_s != self._lines_per_s:
            self._lines_per_s = lines_per_s
            self._buckets = {
                key: TokenBucket(lines_per_s * BURST_S, lines_per_s) for key in (False, True)
            }
        if self._buckets[failed].spend(now):
            return True
        log_drops.count(LogDropReason.RATE_LIMIT)
        return False


def is_wanted(settings: LogConfig, namespace: str, *, failed: bool) -> bool:
    """Whether the rules select the line. Samples successful connections at random."""
    rule = settings.access
    if settings.namespaces:
        rule = settings.namespaces.get(namespace, rule)
    if failed:
        return rule.level in _FAILURES
    return rule.level in _ALL and (rule.sample >= 1 or random.random() < rule.sample)
