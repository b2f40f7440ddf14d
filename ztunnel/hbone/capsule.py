# SPDX-License-Identifier: Apache-2.0
"""UDP payloads as capsules on a stream: RFC 9297 (capsules), RFC 9298 (what is in them).

    capsule  = type (varint) length (varint) value
    DATAGRAM = type 0, value = context id (varint), 0: the rest is a UDP payload

Varints are RFC 9000's.
"""

from __future__ import annotations

DATAGRAM = 0  # RFC 9297 3.5: the capsule type
UDP_CONTEXT = 0  # RFC 9298 4: the context id of UDP payloads
MAX_UDP_PAYLOAD_BYTES = 65_527  # RFC 9298 5: octets; UDP's length field less its header
MAX_DATAGRAM_HEADER_BYTES = 6  # octets: type and context of 1 each, length of up to 4
_MAX_VARINT_BYTES = 8
_ONE, _TWO, _FOUR = 1 << 6, 1 << 14, 1 << 30


def datagram_header(size: int) -> bytes:
    """What goes before a UDP payload of `size` octets. Raises ValueError when it is too large."""
    if not 0 <= size <= MAX_UDP_PAYLOAD_BYTES:
        raise ValueError(f"a UDP payload of {size} octets")
    return b"\0" + varint(size + 1) + b"\0"


def varint(value: int) -> bytes:
    """RFC 9000 16, in the fewest octets."""
    if value < _ONE:
        return value.to_bytes(1, "big")
    if value < _TWO:
        return (value | 0x4000).to_bytes(2, "big")
    if value < _FOUR:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


class CapsuleReader:
    """The receiving end of one stream. Never raises; what it can't bear is said in `error`.

    Octets may come in any pieces. At most one datagram is kept; other capsules are skipped,
    whatever their length, as are datagrams of unknown contexts.
    """

    __slots__ = ("_held", "_skip", "error")

    def __init__(self) -> None:
        self.error = ""  # not empty: the stream is to be aborted, nothing more is read
        self._held = bytearray()  # the beginning of a capsule that has not come whole
        self._skip = 0  # octets of the present capsule that nobody wants

    def feed(self, data: memoryview) -> list[memoryview]:
        """The UDP payloads that are complete now. Good until the buffer behind `data` changes."""
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
    def is_between(self) -> bool:
        """Whether the stream may end here: not within a capsule."""
        return not self._held and not self._skip

    def _complete(self, data: memoryview, found: list[memoryview]) -> memoryview:
        """Go on with the capsule that began in an earlier piece; what is left of `data`."""
        before = len(self._held)
        # A capsule we keep is never longer than this; of any other only the head counts.
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
        """Take one capsule at the start of `data`; the octets used, 0 if it has not come whole.

        Of a capsule to be skipped only the head is used, and `_skip` set.
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
            self.error = "a DATAGRAM capsule too short for its context"
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
    """The value at an index and the index after it, which is 0 when it has not come whole."""
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
