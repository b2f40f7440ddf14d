# SPDX-License-Identifier: Apache-2.0
"""What the codec's parts hand to each other.

Apart from those parts because mypyc, which compiles them (`ztunnel.compiled`), knows nothing of
msgspec's structs.
"""

from __future__ import annotations

import msgspec

from ztunnel.hbone.events import Header


class DataPiece(msgspec.Struct, gc=False):
    """Part of a DATA frame.

    `charge` is what it takes from the flow control windows (the whole frame's length on its
    first piece, 0 on later ones), `padding` how much of that is not payload. `last` is set
    when END_STREAM is and all payload is here.
    """

    stream_id: int
    payload: memoryview
    charge: int
    padding: int
    last: bool


class HeaderBlock(msgspec.Struct, gc=False):
    """HEADERS with all its CONTINUATION; padding and priority removed."""

    stream_id: int
    block: bytes
    end_stream: bool


class Frame(msgspec.Struct, gc=False):
    """Any other frame, of a length its type allows. Unknown types come with no payload."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Request(msgspec.Struct, frozen=True, gc=False):
    """A well-formed request's pseudo-header fields, and the regular ones."""

    method: bytes
    authority: bytes
    protocol: bytes
    fields: tuple[Header, ...]
    path: bytes = b""
