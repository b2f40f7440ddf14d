# SPDX-License-Identifier: Apache-2.0
"""The node's current log configuration: the admin API writes it, access logs read it."""

from __future__ import annotations

from ztunnel.ipc.messages import LogConfig


class LogSettings:
    """Reset when the agent restarts."""

    def __init__(self) -> None:
        self.current = LogConfig()
