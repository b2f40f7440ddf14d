# SPDX-License-Identifier: Apache-2.0
"""The events that `Connection.receive` returns.

They are msgspec structs because each DATA frame creates one: a struct is about three times faster
than a dataclass, and `gc=False` exempts it from garbage collection. Header names and values are
octets as on the wire; names are lowercase. Codes are ints: a peer may send codes that `ErrorCode`
does not define.
"""

from __future__ import annotations

import msgspec

from ztunnel.hbone.errors import ErrorCode

Header = tuple[bytes, bytes]


class RequestReceived(msgspec.Struct, frozen=True, gc=False):
    """Server: a well-formed request. The caller must refuse methods other than CONNECT.

    `headers` are the regular fields only; `protocol` is empty unless extended CONNECT
    (RFC 8441) is enabled and used. `path` is empty for a bare CONNECT.
    """

    stream_id: int
    method: bytes
    authority: bytes
    headers: tuple[Header, ...]
    protocol: bytes = b""
    path: bytes = b""


class ResponseReceived(msgspec.Struct, frozen=True, gc=False):
    """Client: the final response. `headers` are the regular fields only."""

    stream_id: int
    status: int
    headers: tuple[Header, ...]


class DataReceived(msgspec.Struct, frozen=True, gc=False):
    """Payload of a DATA frame or of a part of it: not empty, without padding.

    `payload` points into the buffer that was passed to `receive`: use or copy it before that buffer
    is written again. Call `Connection.consumed` once for every octet.
    """

    stream_id: int
    payload: memoryview


class StreamEnded(msgspec.Struct, frozen=True, gc=False):
    """END_STREAM: the peer has closed its half of the stream."""

    stream_id: int


class StreamReset(msgspec.Struct, frozen=True, gc=False):
    """The stream is closed in both directions.

    Causes: RST_STREAM of the peer; a protocol violation, for which this side reset the stream
    (`by_peer` is false); or a GOAWAY that excludes the stream (code REFUSED_STREAM: the request
    was not processed and may be retried).
    """

    stream_id: int
    code: int
    by_peer: bool = True


class WindowOpened(msgspec.Struct, frozen=True, gc=False):
    """A send window became positive: the stream's, or with ID 0 the connection's."""

    stream_id: int


class GoAway(msgspec.Struct, frozen=True, gc=False):
    """The peer accepts no new streams; those up to `last_stream` continue."""

    last_stream: int
    code: int


class SettingsReceived(msgspec.Struct, frozen=True, gc=False):
    """The peer's SETTINGS apply now: `can_open_stream` and `sendable` may have changed."""


class PongReceived(msgspec.Struct, frozen=True, gc=False):
    """The answer to `Connection.ping(payload)`."""

    payload: bytes


class ConnectionFailed(msgspec.Struct, frozen=True, gc=False):
    """The peer broke the protocol. Always the last event.

    GOAWAY with `code` is queued: send it, then close. `reason` is for the log.
    """

    code: ErrorCode
    reason: str


Event = (
    DataReceived
    | StreamEnded
    | RequestReceived
    | ResponseReceived
    | StreamReset
    | WindowOpened
    | GoAway
    | SettingsReceived
    | PongReceived
    | ConnectionFailed
)
