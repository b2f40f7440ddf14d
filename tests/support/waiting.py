# SPDX-License-Identifier: Apache-2.0
"""Wait for a condition with a deadline, in threads and in coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")
Falsy = Literal[False] | None
What = str | Callable[[], object]  # what is awaited, or a function that describes the state found

TIMEOUT_S = 10.0
INTERVAL_S = 0.01


def wait_until(
    condition: Callable[[], T | Falsy], what: What = "", timeout_s: float = TIMEOUT_S
) -> T:
    """Poll until `condition` returns a true value, and return that value.

    Raises AssertionError, which names `what`, after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        _check(deadline, condition, what, timeout_s)
        time.sleep(INTERVAL_S)
    return found


async def wait_until_async(
    condition: Callable[[], T | Falsy], what: What = "", timeout_s: float = TIMEOUT_S
) -> T:
    """`wait_until` for a condition that the tasks of the running event loop bring about."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        _check(deadline, condition, what, timeout_s)
        await asyncio.sleep(INTERVAL_S / 5)
    return found


def _check(deadline: float, condition: Callable[[], object], what: What, timeout_s: float) -> None:
    if time.monotonic() < deadline:
        return
    described = what() if callable(what) else what or condition
    raise AssertionError(f"timed out after {timeout_s:g} s: {described}")
