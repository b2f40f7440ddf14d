# SPDX-License-Identifier: Apache-2.0
"""The access log: one line per connection, rendered without structlog's processor chain for speed.

Lines have the format that `configure_logs` selected, without color. Text from a peer or an
application cannot forge a line: JSON escapes it, and the console format quotes every value that is
not plain and escapes its control characters.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

import msgspec
import structlog

from ztunnel.ipc.messages import LogConfig
from ztunnel.telemetry.access_log_filter import AccessLogLimiter, is_wanted
from ztunnel.telemetry.logs import current_format

Level = Literal["info", "warning"]
Fields = dict[str, object]
Renderer = Callable[[Level, str, Fields], bytes]

_encode = msgspec.json.Encoder(enc_hook=str).encode
_SPECIAL = frozenset(" =\"'\\")  # values with these are quoted, and unprintable ones


class AccessLog:
    """Buffers the lines of one turn of the event loop and writes them in one system call."""

    def __init__(
        self, at_end_of_turn: Callable[[Callable[[], None]], None], render: Renderer
    ) -> None:
        self._at_end_of_turn = at_end_of_turn
        self._render = render
        self._bound = structlog.contextvars.get_contextvars()  # bound at process start
        self._lines: list[bytes] = []
        self._limiter = AccessLogLimiter()
        self.settings = LogConfig()

    def wants(self, namespace: str, *, failed: bool) -> bool:
        """Whether to write the line of a connection of a pod of this namespace.

        Samples at random and counts against the limit, so call it once for each connection.
        """
        return is_wanted(self.settings, namespace, failed=failed) and self._limiter.admits(
            self.settings.access_lines_per_s, failed=failed
        )

    def write(self, level: Level, event: str, fields: Fields) -> None:
        """Buffer a line. Empty fields are omitted."""
        if not self._lines:
            self._at_end_of_turn(self.flush)
        shown = {key: value for key, value in fields.items() if value != ""}
        shown.update(self._bound)
        self._lines.append(self._render(level, event, shown))

    def flush(self) -> None:
        """Write the buffered lines."""
        lines, self._lines = self._lines, []
        stream = sys.stderr.buffer
        stream.write(b"".join(lines))
        stream.flush()


def configured_renderer() -> Renderer:
    """The renderer of the format that `configure_logs` selected."""
    return render_json if current_format() == "json" else render_console


def render_json(level: Level, event: str, fields: Fields) -> bytes:
    """One JSON object and a line feed."""
    return _encode({**fields, "event": event, "level": level, "timestamp": _now()}) + b"\n"


def render_console(level: Level, event: str, fields: Fields) -> bytes:
    """`time [level] event key=value ...`, sorted by key."""
    pairs = " ".join([f"{key}={_plain(str(fields[key]))}" for key in _in_order(tuple(fields))])
    return f"{_now()} [{level.ljust(9)}] {event.ljust(30)} {pairs}\n".encode()


@lru_cache(maxsize=256)
def _in_order(keys: tuple[str, ...]) -> list[str]:
    return sorted(keys)


@lru_cache(maxsize=4096)  # most values repeat
def _plain(text: str) -> str:
    return text if text.isprintable() and _SPECIAL.isdisjoint(text) else ascii(text)


def _now() -> str:
    now = time.time()
    return f"{_second(int(now))}.{str(int(now % 1 * 1e6)).zfill(6)}Z"


@lru_cache(maxsize=1)
def _second(now: int) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S")
