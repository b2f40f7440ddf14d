# SPDX-License-Identifier: Apache-2.0
"""The streams of a connection: the open ones, and how the others closed.

RFC 9113 5.1 without push and priorities, hence without the reserved states. s: sent, r: received,
H: HEADERS, ES: END_STREAM, R: RST_STREAM

                      idle
                       | sH / rH
                       v
             rES     open     sES          local_open   remote_open
          +-----------+ +-----------+      open: yes        yes
          v             |           v
    half-closed         | sR     half-closed
      (remote)          | rR       (local)
     yes / no           |          no / yes
          |             v           |
          +-------> closed <--------+
        sES/sR/rR           rES/sR/rR

In addition, a stream is `answered` after the final response, and a `tunnel` once only DATA may
follow (CONNECT: after the request at the server, after a 2xx at the client).

A closed stream leaves the table. The table remembers the latest locally reset streams, because late
frames of the peer are normal there and are ignored. DATA or HEADERS on any other closed stream are
an error of the connection.
"""

from __future__ import annotations

from enum import Enum, auto

from ztunnel.hbone import constants
from ztunnel.hbone.flow_control import ReceiveWindow, SendWindow


class Stream:
    """A stream that is not closed."""

    __slots__ = (
        "answered",
        "local_open",
        "receive_window",
        "remote_open",
        "send_window",
        "stream_id",
        "tunnel",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.stream_id = stream_id
        self.send_window = SendWindow(send_window)
        self.receive_window = ReceiveWindow(receive_window)
        self.local_open = True  # this side may send
        self.remote_open = True  # the peer may send
        self.answered = False
        self.tunnel = False


class ClosedReason(Enum):
    """Why a stream ID is not in the table."""

    IDLE = auto()  # never opened
    RESET_LOCALLY = auto()  # late frames of the peer are normal
    CLOSED = auto()


class StreamTable:
    """Streams by ID. Clients open ascending odd IDs (RFC 9113 5.1.1); servers open none."""

    def __init__(self, receive_window: int) -> None:
        self.live: dict[int, Stream] = {}
        self.highest = -1  # the last ID that was opened; -1: none
        self._receive_window = receive_window
        self._reset: dict[int, None] = {}  # an ordered set
        self._late_frames = constants.MAX_LATE_FRAMES  # that the peer may still send

    def open(self, stream_id: int, send_window: int) -> Stream:
        self.highest = stream_id
        stream = Stream(stream_id, send_window, self._receive_window)
        self.live[stream_id] = stream
        self._late_frames = min(
            self._late_frames + constants.LATE_FRAMES_PER_STREAM, constants.MAX_LATE_FRAMES
        )
        return stream

    def spend_late_frame(self) -> bool:
        """Count a frame on a closed stream; False if the peer sent more than its streams may."""
        if not self._late_frames:
            return False
        self._late_frames -= 1
        return True

    @property
    def next_id(self) -> int:
        return self.highest + 2

    def closed_reason(self, stream_id: int) -> ClosedReason:
        if stream_id in self._reset:
            return ClosedReason.RESET_LOCALLY
        if stream_id & 1 and stream_id <= self.highest:
            return ClosedReason.CLOSED
        return ClosedReason.IDLE

    def close_local(self, stream: Stream) -> None:
        stream.local_open = False
        if not stream.remote_open:
            del self.live[stream.stream_id]

    def close_remote(self, stream: Stream) -> None:
        stream.remote_open = False
        if not stream.local_open:
            del self.live[stream.stream_id]

    def reset_by_peer(self, stream_id: int) -> None:
        """The peer reset the stream."""
        self.live.pop(stream_id, None)

    def reset_local(self, stream_id: int) -> None:
        """This side reset the stream, or refused to open it."""
        self.live.pop(stream_id, None)
        self.highest = max(self.highest, stream_id)
        self._reset[stream_id] = None
        if len(self._reset) > constants.MAX_REMEMBERED_RESETS:
            del self._reset[next(iter(self._reset))]
