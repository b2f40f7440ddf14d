# SPDX-License-Identifier: Apache-2.0
"""What `Connection.receive` tells its caller.

msgspec structs, because one is made per DATA frame: they are built about three times faster
than a dataclass, and with `gc=False` the cycle collector never looks at them.
Field names and values are octets, as they were on the wire: names are known to be lowercase.
Codes are ints, since a peer may send ones that `ErrorCode` does not know.
"""

from __future__ import annotations

import msgspec

from ztunnel.hbone.errors import ErrorCode

Header = tuple[bytes, bytes]


class RequestReceived(msgspec.Struct, frozen=True, gc=False):
    """Server: a well-formed request. A method other than CONNECT is for the caller to refuse.

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
    """Payload of a DATA frame, or of a part of it: never empty, padding removed.

    `payload` points into the buffer given to `receive`: use or copy it before that buffer is
    written again. Give every octet back by `Connection.consumed`, once.
    """

    stream_id: int
    payload: memoryview


class StreamEnded(msgspec.Struct, frozen=True, gc=False):
    """The peer will send no more on this stream (END_STREAM): its half is closed."""

    stream_id: int


class StreamReset(msgspec.Struct, frozen=True, gc=False):
    """The stream is gone at once, both ways.

    By the peer's RST_STREAM; or (`by_peer` false) because the peer broke the protocol on
    it and we reset it; or because its GOAWAY says it never looked at it: code
    REFUSED_STREAM, safe to try elsewhere.
    """

    stream_id: int
    code: int
    by_peer: bool = True


class WindowOpened(msgspec.Struct, frozen=True, gc=False):
    """A send window went from none to some: the stream's, or with id 0 the connection's."""

    stream_id: int


class GoAway(msgspec.Struct, frozen=True, gc=False):
    """The peer takes no new streams; those up to `last_stream` live on."""

    last_stream: int
    code: int


class SettingsReceived(msgspec.Struct, frozen=True, gc=False):
    """The peer's SETTINGS are in force: `can_open_stream` and `sendable` may have changed."""


class PongReceived(msgspec.Struct, frozen=True, gc=False):
    """The answer to `Connection.ping(payload)`."""

    payload: bytes


class ConnectionFailed(msgspec.Struct, frozen=True, gc=False):
    """The peer broke the protocol. Always the last event there is.

    GOAWAY with `code` waits in the output: send it, then close. `reason` is for the log.
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
