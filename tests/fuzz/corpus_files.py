# SPDX-License-Identifier: Apache-2.0
"""The corpus: interesting inputs of past runs, one Python bytes literal per line.

    tests/fuzz/corpus/<target>.txt

Lines make changes of the corpus readable.
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
    """The inputs of a target; none if it has no file."""
    path = FOLDER / f"{name}.txt"
    lines = path.read_text("ascii").splitlines() if path.exists() else []
    return [bytes(ast.literal_eval(line)) for line in lines]


def write(name: str, inputs: Iterable[bytes]) -> None:
    """Write the inputs of a target, shortest first."""
    ordered = sorted(set(inputs), key=lambda each: (len(each), each))
    (FOLDER / f"{name}.txt").write_text("".join(f"{each!r}\n" for each in ordered), "ascii")


def distilled(check: Callable[[bytes], None], inputs: Iterable[bytes]) -> list[bytes]:
    """The inputs that cover code which no shorter input covers, shortest first."""
    seen: set[Step] = set()
    kept = []
    for octets in sorted(set(inputs), key=lambda each: (len(each), each)):
        steps = _steps(check, octets)
        if not steps <= seen:
            seen |= steps
            kept.append(octets)
    return kept


Step = tuple[str, int, int]  # from one line to another of a file


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
