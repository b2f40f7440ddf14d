# SPDX-License-Identifier: Apache-2.0
"""One HBONE connection's HTTP/2: octets in, events out, octets out. No socket, no clock.

May import the rest of `ztunnel.hbone`. The caller owns the transport:

    conn = Connection(Role.CLIENT)
    send(conn.take_output())                      # preface and SETTINGS
    sid = conn.request([(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), ...])
    send(conn.take_output())
    for event in conn.receive(memoryview(chunk), now): ...

Payload is never copied. To send it, read the application's octets into a buffer at offset 9
and let the codec put the frame header in front of them:

    n = app.recv_into(buffer[9 : 9 + conn.sendable(sid)])
    conn.write_data_header_into(buffer, 0, sid, n)
    send(conn.take_output()); send(buffer[: 9 + n])

Order is the caller's: whatever `take_output` holds must go out before a DATA frame that was
made later, and nothing may come between a frame header and its payload.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from ztunnel.hbone import settings
from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.events import Event, Header


class Role(Enum):
    CLIENT = "client"  # opens streams by `request`
    SERVER = "server"  # answers them by `respond`


class Connection:
    """The state of one connection. All methods are for one thread.

    Methods that send raise `Misuse` if the caller breaks the protocol; nothing a peer sends
    makes any method raise.
    """

    def __init__(
        self,
        role: Role,
        *,
        stream_window: int = settings.STREAM_WINDOW,
        connection_window: int = settings.CONNECTION_WINDOW,
        max_frame_size: int = settings.MAX_FRAME_SIZE,
        max_header_list: int | None = None,
        max_streams: int = settings.MAX_CONCURRENT_STREAMS,
        extended_connect: bool = False,
    ) -> None:
        """The preface and SETTINGS are in the output at once.

        `max_header_list`: None takes the role's own, 16 KiB client, 64 KiB server.
        `max_streams`: how many the peer may have open (server).
        """
        raise NotImplementedError

    # What came

    def receive(self, data: memoryview, now: float) -> list[Event]:
        """Take a chunk as it came from the transport; `now` is monotonic seconds.

        The whole chunk is used. A DATA frame's payload is passed on as it comes, without
        waiting for the frame's end. The time serves only the flood limits.
        """
        raise NotImplementedError

    # What to send

    def take_output(self) -> bytes:
        """All control frames queued since the last call, to be sent in this order."""
        raise NotImplementedError

    @property
    def has_output(self) -> bool:
        raise NotImplementedError

    def request(self, headers: Iterable[Header], *, end_stream: bool = False) -> int:
        """Client: open a stream, pseudo-header fields first; returns its id. See `can_open_stream`."""
        raise NotImplementedError

    def respond(
        self,
        stream_id: int,
        status: int,
        headers: Iterable[Header] = (),
        *,
        end_stream: bool = False,
    ) -> None:
        """Server: send the final response. Does nothing when the stream is gone already.

        To refuse: `end_stream=True`, then `reset(stream_id, NO_ERROR)` lets go of it.
        """
        raise NotImplementedError

    def sendable(self, stream_id: int) -> int:
        """Octets that one DATA frame may carry now; 0 when blocked, ended or gone.

        When 0, wait for `WindowOpened` of the stream or of 0.
        """
        raise NotImplementedError

    def data_frame_header(self, stream_id: int, length: int, *, end_stream: bool = False) -> bytes:
        """The 9 octets for a DATA frame of `length` ≤ `sendable`; takes it from the windows."""
        raise NotImplementedError

    def write_data_header_into(
        self,
        buffer: bytearray | memoryview,
        offset: int,
        stream_id: int,
        length: int,
        *,
        end_stream: bool = False,
    ) -> None:
        """`data_frame_header`, written to `buffer[offset:offset + 9]`."""
        raise NotImplementedError

    def end_stream(self, stream_id: int) -> None:
        """Close our half: an empty DATA frame with END_STREAM. Nothing if ended or gone."""
        raise NotImplementedError

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End the stream at once, both ways. Nothing if it is gone. No event follows."""
        raise NotImplementedError

    def consumed(self, stream_id: int, n: int) -> None:
        """Give the peer `n` octets of credit back, once they have left our hands.

        Owed once for every octet of every `DataReceived`, also when it was thrown away
        and also after the stream ended or was reset: the connection's window needs it.
        """
        raise NotImplementedError

    def ping(self, payload: bytes) -> None:
        """Send PING with these 8 octets; `PongReceived` brings them back."""
        raise NotImplementedError

    def goaway(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Take no new streams; those that are open go on. The peer's newer ones are refused."""
        raise NotImplementedError

    # What is

    @property
    def open_streams(self) -> int:
        """Streams not yet closed both ways."""
        raise NotImplementedError

    @property
    def can_open_stream(self) -> bool:
        """Client: whether `request` is allowed now (peer's limit, GOAWAY, ids left)."""
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """`ConnectionFailed` was reported: send the output and close."""
        raise NotImplementedError
