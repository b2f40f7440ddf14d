# SPDX-License-Identifier: Apache-2.0
"""Frames as the reader passes them to the handlers.

A module of its own, because mypyc compiles the other modules (`ztunnel.compiled`) and does not
support msgspec structs.
"""

from __future__ import annotations

import msgspec

from ztunnel.hbone.events import Header


class DataPiece(msgspec.Struct, gc=False):
    """Part of a DATA frame.

    `charge` is subtracted from the flow control windows: the length of the frame on its first
    piece, 0 on later ones. `padding` is the part of it that is not payload. `last` is set on the
    last piece of a frame with END_STREAM.
    """

    stream_id: int
    payload: memoryview
    charge: int
    padding: int
    last: bool


class HeaderBlock(msgspec.Struct, gc=False):
    """HEADERS with its CONTINUATION frames, without padding and priority."""

    stream_id: int
    block: bytes
    end_stream: bool


class Frame(msgspec.Struct, gc=False):
    """Any other frame, of a valid length. Unknown types have no payload here."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Request(msgspec.Struct, frozen=True, gc=False):
    """The pseudo-header fields and regular fields of a well-formed request."""

    method: bytes
    authority: bytes
    protocol: bytes
    fields: tuple[Header, ...]
    path: bytes = b""
