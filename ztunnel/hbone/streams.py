# SPDX-License-Identifier: Apache-2.0
"""The streams of a connection: which are open, and what became of the others.

RFC 9113 5.1 without push and
without priorities, hence without the reserved states; s: we send, r: we receive,
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

Within that a stream is `answered` once the final response passed, and a `tunnel` once nothing
but DATA may follow (CONNECT: from the request on at the server, from a 2xx on at the client).

A closed stream leaves the table. Of those we reset ourselves, the latest are remembered:
the peer's frames may still be on their way and are dropped. On any other closed stream DATA
or HEADERS are an error of the connection.
"""

from __future__ import annotations

from enum import Enum, auto

from ztunnel.hbone import constants
from ztunnel.hbone.errors import ErrorCode, H2ConnectionError
from ztunnel.hbone.flow_control import ReceiveWindow, SendWindow


class Stream:
    """One that is not closed yet."""

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
        self.local_open = True  # we may send
        self.remote_open = True  # the peer may send
        self.answered = False
        self.tunnel = False


class ClosedReason(Enum):
    """Why a stream id is not in the table."""

    IDLE = auto()  # never opened
    FORGIVEN = auto()  # we reset it: late frames are normal
    CLOSED = auto()


class StreamTable:
    """Streams by id. Clients open odd ids, ascending (RFC 9113 5.1.1); servers open none."""

    def __init__(self, receive_window: int) -> None:
        self.live: dict[int, Stream] = {}
        self.highest = -1  # the last id that was opened, -1: none
        self._receive_window = receive_window
        self._reset: dict[int, None] = {}  # an ordered set

    def open(self, stream_id: int, send_window: int) -> Stream:
        self.highest = stream_id
        stream = Stream(stream_id, send_window, self._receive_window)
        self.live[stream_id] = stream
        return stream

    @property
    def next_id(self) -> int:
        return self.highest + 2

    def check_new(self, stream_id: int) -> None:
        """The peer opens a stream: odd, and beyond all that were."""
        if not stream_id & 1:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, f"a client opened stream {stream_id}")
        if stream_id <= self.highest:
            raise H2ConnectionError(
                ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {stream_id}"
            )

    def why_absent(self, stream_id: int) -> ClosedReason:
        if stream_id in self._reset:
            return ClosedReason.FORGIVEN
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

    def drop(self, stream_id: int) -> None:
        """The peer reset it."""
        self.live.pop(stream_id, None)

    def forgive(self, stream_id: int) -> None:
        """We reset it, or never let it open."""
        self.live.pop(stream_id, None)
        self.highest = max(self.highest, stream_id)
        self._reset[stream_id] = None
        if len(self._reset) > constants.MAX_REMEMBERED_RESETS:
            del self._reset[next(iter(self._reset))]
