# SPDX-License-Identifier: Apache-2.0
"""The peer's SETTINGS, validated (RFC 9113 6.5.2, RFC 8441 3)."""

from __future__ import annotations

from ztunnel.hbone import constants
from ztunnel.hbone.errors import ErrorCode, H2ConnectionError
from ztunnel.hbone.frames import Setting


class PeerSettings:
    """The current values, without HEADER_TABLE_SIZE: the encoder uses no dynamic table."""

    __slots__ = ("_is_server", "extended_connect", "initial_window", "max_frame", "max_streams")

    def __init__(self, *, is_server: bool) -> None:
        """`is_server`: the peer is the server."""
        self._is_server = is_server
        self.initial_window = constants.DEFAULT_WINDOW_BYTES
        self.max_frame = constants.DEFAULT_MAX_FRAME_BYTES
        self.max_streams = constants.INITIAL_PEER_MAX_STREAMS
        self.extended_connect = False

    def apply(self, values: list[tuple[int, int]]) -> int:
        """Apply one SETTINGS frame; returns the change of every stream's send window."""
        before = self.initial_window
        for key, value in values:
            self._apply(key, value)
        return self.initial_window - before

    def on_first_settings(self) -> None:
        """The first SETTINGS arrived: a limit that it does not set does not exist."""
        self.max_streams = constants.MAX_STREAM_ID

    def _apply(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > constants.MAX_WINDOW_BYTES:
                raise _invalid(key, value, ErrorCode.FLOW_CONTROL_ERROR)
            self.initial_window = value
        elif key == Setting.MAX_FRAME_SIZE:
            if not constants.DEFAULT_MAX_FRAME_BYTES <= value <= constants.MAX_ALLOWED_FRAME_BYTES:
                raise _invalid(key, value)
            self.max_frame = value
        elif key == Setting.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        elif key == Setting.ENABLE_PUSH:
            if value > (0 if self._is_server else 1):
                raise _invalid(key, value)
        elif key == Setting.ENABLE_CONNECT_PROTOCOL:
            if value > 1 or (self.extended_connect and not value):
                raise _invalid(key, value)
            self.extended_connect = bool(value)


def _invalid(key: int, value: int, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> H2ConnectionError:
    return H2ConnectionError(code, f"{Setting(key).name} = {value} is not allowed")
