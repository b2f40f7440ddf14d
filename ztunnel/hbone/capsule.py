# SPDX-License-Identifier: Apache-2.0
"""UDP payloads as capsules on a stream: RFC 9297 (capsules) and RFC 9298 (their content).

    capsule  = type (varint) length (varint) value
    DATAGRAM = type 0, value = context id (varint), 0: the rest is a UDP payload

Varints are encoded as in RFC 9000.
"""

from __future__ import annotations

DATAGRAM = 0  # RFC 9297 3.5: the capsule type
UDP_CONTEXT = 0  # RFC 9298 4: the context id of UDP payloads
MAX_UDP_PAYLOAD_BYTES = 65_527  # RFC 9298 5: UDP's length field minus its header
MAX_DATAGRAM_HEADER_BYTES = 6  # type and context of 1 octet each, length of up to 4
_MAX_VARINT_BYTES = 8
_ONE, _TWO, _FOUR = 1 << 6, 1 << 14, 1 << 30


def datagram_header(size: int) -> bytes:
    """The header of a UDP payload of `size` octets. Raises ValueError if it is too large."""
    if not 0 <= size <= MAX_UDP_PAYLOAD_BYTES:
        raise ValueError(f"a UDP payload of {size} octets")
    return b"\0" + varint(size + 1) + b"\0"


def varint(value: int) -> bytes:
    """The shortest encoding (RFC 9000 16)."""
    if value < _ONE:
        return value.to_bytes(1, "big")
    if value < _TWO:
        return (value | 0x4000).to_bytes(2, "big")
    if value < _FOUR:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


class CapsuleReader:
    """Decodes the capsules of one stream. Never raises; errors are stored in `error`.

    Octets may arrive in any pieces. At most one datagram is buffered. Other capsules of any length
    and datagrams of unknown contexts are skipped.
    """

    __slots__ = ("_held", "_skip", "error")

    def __init__(self) -> None:
        self.error = ""  # if not empty, abort the stream; nothing more is read
        self._held = bytearray()  # the beginning of an incomplete capsule
        self._skip = 0  # octets of the current capsule to skip

    def feed(self, data: memoryview) -> list[memoryview]:
        """The UDP payloads that are complete now; valid until the buffer behind `data` changes."""
        found: list[memoryview] = []
        if self._held:
            data = self._complete(data, found)
        pos, end = 0, len(data)
        while pos < end and not self.error:
            if self._skip:
                step = min(self._skip, end - pos)
                self._skip -= step
                pos += step
                continue
            size = self._capsule(data[pos:], found)
            if not size:
                self._held += data[pos:]
                break
            pos += size
        return found

    @property
    def is_at_boundary(self) -> bool:
        """Whether the stream may end here: at the end of a capsule."""
        return not self._held and not self._skip

    def _complete(self, data: memoryview, found: list[memoryview]) -> memoryview:
        """Continue the capsule that began in an earlier piece; returns the rest of `data`."""
        before = len(self._held)
        # A buffered capsule is never longer than this; of any other only the header matters.
        self._held += data[: 2 * _MAX_VARINT_BYTES + 1 + _MAX_VARINT_BYTES + MAX_UDP_PAYLOAD_BYTES]
        whole = memoryview(bytes(self._held))
        self._held.clear()
        size = self._capsule(whole, found)
        if self.error:
            return data[:0]
        if not size:
            self._held += whole
            return data[len(whole) - before :]
        return data[size - before :]

    def _capsule(self, data: memoryview, found: list[memoryview]) -> int:
        """Decode one capsule at the start of `data`; returns its length, 0 if it is incomplete.

        Of a capsule to skip only the header is consumed, and `_skip` is set.
        """
        kind, at = read_varint(data, 0)
        length, start = read_varint(data, at) if at else (0, 0)
        if not start:
            return 0
        if kind == DATAGRAM:
            return self._datagram(data, start, length, found)
        self._skip = length
        return start

    def _datagram(self, data: memoryview, start: int, length: int, found: list[memoryview]) -> int:
        if not length or (start < len(data) and 1 << (data[start] >> 6) > length):
            self.error = "DATAGRAM capsule too short for its context"
            return 0
        context, payload = read_varint(data, start)
        if not payload:
            return 0
        end = start + length
        if context != UDP_CONTEXT:
            self._skip = end - payload
            return payload
        if end - payload > MAX_UDP_PAYLOAD_BYTES:
            self.error = f"a UDP payload of {end - payload} octets"
            return 0
        if len(data) < end:
            return 0
        found.append(data[payload:end])
        return end


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The value at an index and the index behind it, which is 0 if the value is incomplete."""
    if at >= len(data):
        return 0, 0
    first = data[at]
    if first < _ONE:
        return first, at + 1
    size = 1 << (first >> 6)
    if len(data) < at + size:
        return 0, 0
    value = int.from_bytes(data[at : at + size], "big")
    return value & ((1 << (8 * size - 2)) - 1), at + size
