# SPDX-License-Identifier: Apache-2.0
"""The inputs that past runs found worth keeping: one a line, as Python writes octets.

    tests/fuzz/inputs/<target>.txt

Lines, so that a change of the corpus can be read.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = Path(__file__).with_name("corpus")


def read(name: str) -> list[bytes]:
    """A target's inputs; none when it has no file."""
    path = FOLDER / f"{name}.txt"
    lines = path.read_text("ascii").splitlines() if path.exists() else []
    return [bytes(ast.literal_eval(line)) for line in lines]


def write(name: str, inputs: Iterable[bytes]) -> None:
    """Keep these, shortest first."""
    ordered = sorted(set(inputs), key=lambda each: (len(each), each))
    (FOLDER / f"{name}.txt").write_text("".join(f"{each!r}\n" for each in ordered), "ascii")


def distilled(check: Callable[[bytes], None], inputs: Iterable[bytes]) -> list[bytes]:
    """Of the inputs those that go ways which no shorter one went, shortest first."""
    seen: set[Step] = set()
    kept = []
    for octets in sorted(set(inputs), key=lambda each: (len(each), each)):
        steps = _steps(check, octets)
        if not steps <= seen:
            seen |= steps
            kept.append(octets)
    return kept


Step = tuple[str, int, int]  # in a file from one line to another


def _steps(check: Callable[[bytes], None], octets: bytes) -> set[Step]:
    found: set[Step] = set()
    last: dict[FrameType, int] = {}

    def local(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            line = frame.f_lineno
            found.add((frame.f_code.co_filename, last.get(frame, 0), line))
            last[frame] = line
        elif event == "return":
            last.pop(frame, None)
        return local

    def called(frame: FrameType, event: str, argument: object) -> Any:
        is_ours = "/ztunnel/" in frame.f_code.co_filename
        return local(frame, event, argument) if is_ours else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        check(octets)
    finally:
        sys.settrace(before)
    return found
