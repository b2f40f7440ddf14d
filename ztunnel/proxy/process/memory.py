# SPDX-License-Identifier: Apache-2.0
"""Returns freed memory to the system.

glibc keeps freed blocks below the top of its heap. After a burst of stalled connections, that is
hundreds of megabytes which the worker does not use any more.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

TRIM_INTERVAL_S = 10.0
MIN_FREED_BYTES = 16 * 1024 * 1024  # less does not justify the milliseconds that a trim takes


class MemoryTrimmer:
    """Trims the heap once buffered payload was freed."""

    def __init__(
        self, used_bytes: Callable[[], int], trim: Callable[[], None] | None = None
    ) -> None:
        """`used_bytes` returns the current size of all buffered payload."""
        self._used_bytes = used_bytes
        self._trim = trim or _libc_trim()
        self._peak_bytes = 0  # since the last trim

    def check(self) -> None:
        """Trim if at least `MIN_FREED_BYTES` were freed. Call it every `TRIM_INTERVAL_S`."""
        used = self._used_bytes()
        self._peak_bytes = max(self._peak_bytes, used)
        if self._peak_bytes - used >= MIN_FREED_BYTES:
            self._trim()
            self._peak_bytes = used


def _libc_trim() -> Callable[[], None]:
    """malloc_trim(3) of glibc; no effect with other C libraries."""
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if function is None:
        return lambda: None

    def trim() -> None:
        function(0)

    return trim
