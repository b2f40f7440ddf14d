# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes

from ztunnel.proxy.process.memory import MIN_FREED_BYTES, MemoryTrimmer


def test_heap_is_trimmed_once_after_buffers_were_freed() -> None:
    used, trims = 0, 0

    def trim() -> None:
        nonlocal trims
        trims += 1

    trimmer = MemoryTrimmer(lambda: used, trim)
    for size, expected in (
        (0, 0),
        (2 * MIN_FREED_BYTES, 0),
        (MIN_FREED_BYTES + 1, 0),
        (MIN_FREED_BYTES, 1),
        (0, 2),
        (0, 2),
    ):
        used = size
        trimmer.check()
        assert trims == expected


def test_trim_of_the_c_library_is_called() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return
    held = MIN_FREED_BYTES
    trimmer = MemoryTrimmer(lambda: held)
    trimmer.check()
    held = 0
    trimmer.check()
