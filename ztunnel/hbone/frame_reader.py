# SPDX-License-Identifier: Apache-2.0
"""Decodes a stream of octets into frames. Rejects frames that are malformed in any state.

    PREFACE -> HEAD -> DATA            payload, passed on as it arrives
                 |  \\-> PAD -> DATA    one octet before it: the length of the padding
                 |   \\-> BUFFER        any other frame: buffered, then passed on as a whole
                 |    \\-> SKIP         padding, debug data, unknown frames: dropped
                 ^------------/ all return to HEAD

The reader buffers at most one frame header, or one non-DATA payload and one incomplete header
block. The limit on header blocks bounds both, not the announced frame size.
"""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.hbone import constants, frames
from ztunnel.hbone.errors import ErrorCode, H2ConnectionError
from ztunnel.hbone.frames import HEAD, FrameType
from ztunnel.hbone.parsed_frames import DataPiece, Frame, HeaderBlock

# Plain ints: looking up a member of an Enum costs as much as the rest of a step.
_PREFACE, _HEAD, _PAD, _DATA, _BUFFER, _SKIP = range(6)
_FRAME_HEADER = constants.FRAME_HEADER_BYTES
_TYPE_DATA, _TYPE_HEADERS = int(FrameType.DATA), int(FrameType.HEADERS)
_TYPE_CONTINUATION = int(FrameType.CONTINUATION)

_ON_STREAM: frozenset[int] = frozenset(
    (
        FrameType.HEADERS,
        FrameType.PRIORITY,
        FrameType.RST_STREAM,
        FrameType.PUSH_PROMISE,
        FrameType.CONTINUATION,
    )
)
_ON_CONNECTION: frozenset[int] = frozenset((FrameType.SETTINGS, FrameType.PING, FrameType.GOAWAY))
_EXACT_LENGTH: dict[int, int] = {
    FrameType.PRIORITY: 5,
    FrameType.RST_STREAM: 4,
    FrameType.PING: 8,
    FrameType.WINDOW_UPDATE: 4,
}
_PADDED_OR_PRIORITY = frames.PADDED | frames.PRIORITY
_GOAWAY_FIXED = 8  # the rest is debug data, which is skipped


class FrameReader:
    """`feed` accepts chunks of any size. After an H2ConnectionError, do not use it again."""

    __slots__ = (
        "_block",
        "_block_end_stream",
        "_block_parts",
        "_block_stream",
        "_charge",
        "_flags",
        "_kind",
        "_left",
        "_max_block",
        "_max_frame",
        "_padding",
        "_partial",
        "_phase",
        "_skip",
        "_started",
        "_stream_id",
    )

    def __init__(self, *, max_frame: int, max_block: int, expect_preface: bool) -> None:
        self._max_frame = max_frame
        self._max_block = max_block
        self._phase = _PREFACE if expect_preface else _HEAD
        self._started = False  # the first frame, SETTINGS, has arrived
        self._partial = bytearray()  # of a preface, frame header or buffered payload
        self._kind = self._flags = self._stream_id = 0  # of the frame being read
        self._left = len(frames.PREFACE) if expect_preface else 0  # octets missing in this phase
        self._skip = 0  # octets to drop after this phase
        self._charge = self._padding = 0  # of the DATA frame, until its first piece is passed on
        self._block_stream = 0  # whose CONTINUATION must come next; 0: none
        self._block = bytearray()
        self._block_parts = 0
        self._block_end_stream = False

    def feed(self, data: memoryview) -> Iterator[DataPiece | HeaderBlock | Frame]:
        """The frames that `data` completes. DATA payloads are slices of it."""
        pos, end = 0, len(data)
        while pos < end:
            phase = self._phase
            if phase == _DATA:
                stop = min(end, pos + self._left)
                yield self._data(data[pos:stop])
                pos = stop
                continue
            unit: DataPiece | HeaderBlock | Frame | None = None
            if phase == _HEAD:
                if self._partial or end - pos < _FRAME_HEADER:
                    pos, unit = self._split_head(data, pos)
                else:
                    unit = self._begin(HEAD.unpack_from(data, pos))
                    pos += _FRAME_HEADER
            elif phase == _BUFFER:
                pos, unit = self._buffer_payload(data, pos)
            elif phase == _PAD:
                unit = self._pad_length(data[pos])
                pos += 1
            elif phase == _SKIP:
                pos = self._drop(data, pos)
            else:
                pos = self._preface(data, pos)
            if unit is not None:
                yield unit

    # Phases

    def _accumulate(self, data: memoryview, pos: int, size: int) -> int:
        stop = min(len(data), pos + size - len(self._partial))
        self._partial += data[pos:stop]
        return stop

    def _split_head(
        self, data: memoryview, pos: int
    ) -> tuple[int, DataPiece | HeaderBlock | Frame | None]:
        """A frame header that arrives in several pieces."""
        pos = self._accumulate(data, pos, _FRAME_HEADER)
        if len(self._partial) < _FRAME_HEADER:
            return pos, None
        head = HEAD.unpack(self._partial)
        self._partial.clear()
        return pos, self._begin(head)

    def _buffer_payload(self, data: memoryview, pos: int) -> tuple[int, HeaderBlock | Frame | None]:
        if not self._partial and len(data) - pos >= self._left:
            payload = bytes(data[pos : pos + self._left])
            pos += self._left
        else:
            pos = self._accumulate(data, pos, self._left)
            if len(self._partial) < self._left:
                return pos, None
            payload = bytes(self._partial)
            self._partial.clear()
        self._leave()
        return pos, self._whole(payload)

    def _drop(self, data: memoryview, pos: int) -> int:
        stop = min(len(data), pos + self._skip)
        self._skip -= stop - pos
        self._leave()
        return stop

    def _preface(self, data: memoryview, pos: int) -> int:
        stop = self._accumulate(data, pos, self._left)
        if not frames.PREFACE.startswith(self._partial):
            raise H2ConnectionError(
                ErrorCode.PROTOCOL_ERROR, "not HTTP/2: wrong connection preface"
            )
        if len(self._partial) == self._left:
            self._partial.clear()
            self._phase = _HEAD
        return stop

    def _begin(self, head: tuple[int, ...]) -> DataPiece | Frame | HeaderBlock | None:
        """Process a frame header; returns the frame if it has no payload."""
        high, low, kind, flags, stream_id = head
        length = high << 8 | low
        stream_id &= 0x7FFF_FFFF  # the reserved bit is ignored, RFC 9113 4.1
        if length > self._max_frame:
            raise H2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} octets")
        if not self._started:
            self._expect_settings(kind, flags)
        expected = self._block_stream
        if expected and (kind, stream_id) != (_TYPE_CONTINUATION, expected):
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
        self._kind, self._flags, self._stream_id = kind, flags, stream_id
        if kind == _TYPE_DATA:
            return self._begin_data(length)
        self._left = _buffered_length(kind, flags, stream_id, length)
        self._skip = length - self._left
        if kind in (_TYPE_HEADERS, _TYPE_CONTINUATION):
            self._check_block(length)
        if self._left:
            self._phase = _BUFFER
            return None
        self._leave()
        return self._whole(b"")

    def _begin_data(self, length: int) -> DataPiece | None:
        if not self._stream_id:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        self._charge = self._left = length
        self._padding = self._skip = 0
        if self._flags & frames.PADDED:
            if not length:
                raise H2ConnectionError(
                    ErrorCode.FRAME_SIZE_ERROR, "padded DATA without a pad length"
                )
            self._phase = _PAD
            return None
        if length:
            self._phase = _DATA
            return None
        return self._data(_NOTHING)

    def _pad_length(self, padding: int) -> DataPiece | None:
        if padding >= self._charge:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "padding is longer than the frame")
        self._skip = padding
        self._padding = padding + 1
        self._left = self._charge - self._padding
        self._phase = _DATA
        return None if self._left else self._data(_NOTHING)

    def _data(self, payload: memoryview) -> DataPiece:
        self._left -= len(payload)
        last = not self._left and bool(self._flags & frames.END_STREAM)
        piece = DataPiece(self._stream_id, payload, self._charge, self._padding, last)
        self._charge = self._padding = 0
        if not self._left:
            self._phase = _SKIP if self._skip else _HEAD
        return piece

    def _leave(self) -> None:
        self._phase = _SKIP if self._skip else _HEAD

    def _whole(self, payload: bytes) -> HeaderBlock | Frame | None:
        """A complete frame; None while a header block is incomplete."""
        if self._kind == _TYPE_HEADERS:
            self._block_end_stream = bool(self._flags & frames.END_STREAM)
            if self._flags & _PADDED_OR_PRIORITY:
                payload = _strip_headers(self._flags, payload)
        elif self._kind != _TYPE_CONTINUATION:
            return Frame(self._kind, self._flags, self._stream_id, payload)
        self._block += payload
        if not self._flags & frames.END_HEADERS:
            self._block_stream = self._stream_id
            return None
        block = bytes(self._block)
        self._block.clear()
        self._block_stream = self._block_parts = 0
        return HeaderBlock(self._stream_id, block, self._block_end_stream)

    # Validation

    def _expect_settings(self, kind: int, flags: int) -> None:
        if kind != FrameType.SETTINGS or flags & frames.ACK:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self._started = True

    def _check_block(self, length: int) -> None:
        if self._kind == _TYPE_CONTINUATION:
            if not self._block_stream:
                raise H2ConnectionError(
                    ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block"
                )
            self._block_parts += 1
        if self._block_parts > constants.MAX_CONTINUATIONS:
            raise H2ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATION frames")
        if len(self._block) + length > self._max_block:
            raise H2ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


_NOTHING = memoryview(b"")


def _buffered_length(kind: int, flags: int, stream_id: int, length: int) -> int:
    """How much of the payload to buffer. Validates the frame by its type (RFC 9113 6)."""
    if kind > _TYPE_CONTINUATION:
        return 0
    if kind in _ON_STREAM and not stream_id:
        raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, f"{FrameType(kind).name} on stream 0")
    if kind in _ON_CONNECTION and stream_id:
        raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, f"{FrameType(kind).name} on a stream")
    if kind in _EXACT_LENGTH and length != _EXACT_LENGTH[kind]:
        raise H2ConnectionError(
            ErrorCode.FRAME_SIZE_ERROR, f"{FrameType(kind).name} of {length} octets"
        )
    if kind in _CHECKS:
        return _CHECKS[kind](flags, length)
    return length


def _refuse_push(_flags: int, _length: int) -> int:
    raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE although push is disabled")


def _goaway_length(_flags: int, length: int) -> int:
    if length < _GOAWAY_FIXED:
        raise H2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {length} octets")
    return _GOAWAY_FIXED


def _settings_length(flags: int, length: int) -> int:
    if length % 6 or (flags & frames.ACK and length):
        raise H2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {length} octets")
    if length > 6 * constants.MAX_SETTINGS_PER_FRAME:
        raise H2ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, f"{length // 6} settings in one frame")
    return length


_CHECKS = {
    int(FrameType.PUSH_PROMISE): _refuse_push,
    int(FrameType.GOAWAY): _goaway_length,
    int(FrameType.SETTINGS): _settings_length,
}


def _strip_headers(flags: int, payload: bytes) -> bytes:
    """The header block fragment of a HEADERS payload, without padding and priority."""
    start = end = 0
    if flags & frames.PADDED:
        if not payload:
            raise H2ConnectionError(
                ErrorCode.FRAME_SIZE_ERROR, "padded HEADERS without a pad length"
            )
        start, end = 1, payload[0]
    if flags & frames.PRIORITY:
        start += 5
        if len(payload) < start:
            raise H2ConnectionError(
                ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority"
            )
    if start + end > len(payload):
        raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "padding is longer than the frame")
    return payload[start : len(payload) - end]
