# SPDX-License-Identifier: Apache-2.0
"""The state of one HTTP/2 connection, and what sending and receiving share: credit and resets."""

from __future__ import annotations

from enum import Enum

from ztunnel.hbone import constants, frames
from ztunnel.hbone.buffer_budget import BufferBudget, BufferShare
from ztunnel.hbone.errors import ApiMisuseError, ErrorCode
from ztunnel.hbone.flow_control import HeldCredit, ReceiveWindow, SendWindow
from ztunnel.hbone.frame_reader import FrameReader
from ztunnel.hbone.frames import Setting
from ztunnel.hbone.headers import NO_DYNAMIC_TABLE, HeaderDecoder
from ztunnel.hbone.peer_settings import PeerSettings
from ztunnel.hbone.rate_limit import TokenBucket
from ztunnel.hbone.streams import StreamTable


class Role(Enum):
    CLIENT = "client"  # opens streams with `request`
    SERVER = "server"  # answers them with `respond`


class ConnectionState:
    """Windows, streams, settings and queued output of one connection."""

    def __init__(
        self,
        role: Role,
        *,
        share: BufferShare | None = None,
        stream_window: int = constants.STREAM_WINDOW_BYTES,
        connection_window: int = constants.CONNECTION_WINDOW_BYTES,
        max_frame_size: int = constants.MAX_FRAME_BYTES,
        max_header_list: int | None = None,
        max_streams: int = constants.MAX_CONCURRENT_STREAMS,
        extended_connect: bool = False,
    ) -> None:
        """Queues the preface and SETTINGS.

        `share`: of the memory for octets that wait for slow readers, and for grown windows; by
        default, a budget of its own.
        `stream_window`, `connection_window`: the initial windows.
        `max_header_list`: octets; by default 16 KiB for a client, 64 KiB for a server.
        `max_streams` (server): how many streams the peer may have open. Windows and frame size
        must not be below RFC 9113's defaults: the peer uses those until it has our SETTINGS.
        """
        if min(stream_window, connection_window) < constants.DEFAULT_WINDOW_BYTES:
            raise ApiMisuseError(f"a window is below {constants.DEFAULT_WINDOW_BYTES} octets")
        self._is_server = role is Role.SERVER
        if max_header_list is None:
            max_header_list = (
                constants.SERVER_MAX_HEADER_LIST_BYTES
                if self._is_server
                else constants.CLIENT_MAX_HEADER_LIST_BYTES
            )
        self._max_streams = max_streams
        self._extended_connect = extended_connect
        self._reader = FrameReader(
            max_frame=max_frame_size, max_block=max_header_list, expect_preface=self._is_server
        )
        self._decoder = HeaderDecoder(max_header_list)
        self._streams = StreamTable(stream_window)
        self._live = self._streams.live  # one attribute access less per frame
        self._send_window = SendWindow(constants.DEFAULT_WINDOW_BYTES)
        self._receive_window = ReceiveWindow(connection_window)
        self._share = share or BufferBudget(constants.BUFFER_BUDGET_BYTES).new_share()
        self._held = HeldCredit(constants.MAX_HELD_BYTES, self._share)
        self._grown = 0  # octets of `share` for the growth of the connection's window
        self._peer = PeerSettings(is_server=not self._is_server)
        self._settings_received = False
        self._overhead_frames = TokenBucket(
            constants.OVERHEAD_FRAME_BURST, constants.OVERHEAD_FRAMES_PER_S
        )
        self._resets = TokenBucket(constants.RESET_BURST, constants.RESETS_PER_S)
        self._hpack_bytes = TokenBucket(constants.HPACK_BURST_BYTES, constants.HPACK_BYTES_PER_S)
        self._now = 0.0
        self._out = bytearray()
        self._block_prefix = NO_DYNAMIC_TABLE  # precedes the first header block only
        self._goaway_sent: int | None = None  # its last stream ID
        self._goaway_received: int | None = None
        self._failed = False
        self._queue_preface(stream_window, connection_window, max_frame_size, max_header_list)

    def _queue_preface(
        self, stream: int, connection: int, frame_size: int, header_list: int
    ) -> None:
        values = [
            (Setting.INITIAL_WINDOW_SIZE, stream),
            (Setting.MAX_FRAME_SIZE, frame_size),
            (Setting.MAX_HEADER_LIST_SIZE, header_list),
        ]
        if self._is_server:
            values.append((Setting.MAX_CONCURRENT_STREAMS, self._max_streams))
            if self._extended_connect:
                values.append((Setting.ENABLE_CONNECT_PROTOCOL, 1))
        else:
            values.append((Setting.ENABLE_PUSH, 0))
            self._out += frames.PREFACE
        self._out += frames.settings_frame(values)
        if connection > constants.DEFAULT_WINDOW_BYTES:
            self._out += frames.window_update(0, connection - constants.DEFAULT_WINDOW_BYTES)

    # Resets

    def _refuse(self, stream_id: int, code: ErrorCode) -> None:
        self._out += frames.rst_stream(stream_id, code)
        self._streams.reset_local(stream_id)

    # Credit

    def consumed(self, stream_id: int, n: int) -> None:
        """Return `n` octets of credit to the peer, after they were delivered or dropped.

        Required once for every octet of every `DataReceived`, even after the stream ended or was
        reset: the connection's window needs it.
        """
        if self._failed:
            return
        increment = self._receive_window.credit(n)  # inlined: called for each piece of payload
        if increment:
            self._out += frames.window_update(0, increment + self._grow_connection_window())
        stream = self._live.get(stream_id)
        if stream is not None and stream.remote_open:
            increment = stream.receive_window.credit(n)
            if increment:
                increment += self._grow_stream_window(stream.receive_window)
                self._out += frames.window_update(stream_id, increment)

    def _grow_connection_window(self) -> int:
        """The applications read: double the window if the share has room. Returns the increment."""
        limit = self._receive_window.limit
        if 2 * limit > constants.MAX_CONNECTION_WINDOW_BYTES or self._share.room < 4 * limit:
            return 0
        self._share.add(limit)
        self._grown += limit
        return self._receive_window.grow(2 * limit)

    def _grow_stream_window(self, window: ReceiveWindow) -> int:
        """The application reads: double the window within the connection's."""
        limit = 2 * window.limit
        fits = limit * constants.STREAMS_PER_WINDOW <= self._receive_window.limit
        return window.grow(limit) if fits else 0

    def release_memory(self) -> None:
        """The transport is closed: return what the connection uses of its share. Idempotent."""
        self._held.release()
        self._share.give_back(self._grown)
        self._grown = 0

    def hold(self, n: int) -> None:
        """`n` received octets wait for a slow reader: only their stream must wait.

        Call `consumed_held` for them instead of `consumed`.
        """
        if not self._failed:
            self._credit_connection(self._held.add(n))

    def consumed_held(self, stream_id: int, n: int) -> None:
        """As `consumed`, for octets that were passed to `hold`."""
        if not self._failed:
            self._credit_connection(self._held.remove(n))
            self._credit_stream(stream_id, n)

    def _credit_stream(self, stream_id: int, n: int) -> None:
        stream = self._live.get(stream_id)
        if stream is not None and stream.remote_open:
            increment = stream.receive_window.credit(n)
            if increment:
                self._out += frames.window_update(stream_id, increment)

    def _credit_connection(self, n: int) -> None:
        increment = self._receive_window.credit(n)
        if increment:
            self._out += frames.window_update(0, increment)
