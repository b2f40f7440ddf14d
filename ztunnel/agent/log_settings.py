# SPDX-License-Identifier: Apache-2.0
"""The node's current log configuration: the admin API writes it, access logs read it."""

from __future__ import annotations

from ztunnel.ipc.messages import DEFAULT_ACCESS_LINES_PER_S, LogConfig
from ztunnel.telemetry.access_log_filter import AccessLogLimiter


class LogSettings:
    """Reset when the agent restarts."""

    def __init__(self, access_lines_per_s: int = DEFAULT_ACCESS_LINES_PER_S) -> None:
        self.current = LogConfig(access_lines_per_s=access_lines_per_s)
        self._limiter = AccessLogLimiter()

    def admits(self, *, failed: bool) -> bool:
        """Whether one more access log line is within the limit of this process."""
        return self._limiter.admits(self.current.access_lines_per_s, failed=failed)
