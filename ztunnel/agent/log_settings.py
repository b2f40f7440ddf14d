# SPDX-License-Identifier: Apache-2.0
"""The node's current log configuration: the admin API writes it, access logs read it."""

from __future__ import annotations

from ztunnel.ipc.messages import DEFAULT_ACCESS_LINES_PER_S, LogConfig


class LogSettings:
    """Reset when the agent restarts."""

    def __init__(self, access_lines_per_s: int = DEFAULT_ACCESS_LINES_PER_S) -> None:
        self.current = LogConfig(access_lines_per_s=access_lines_per_s)
