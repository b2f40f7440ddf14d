# SPDX-License-Identifier: Apache-2.0
"""Steps that the agent repeats: a failed one is logged and tried again at its next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()


async def every(interval_s: float, step: Callable[[], None]) -> None:
    """Repeat a step until cancelled."""
    while True:
        attempt(step)
        await asyncio.sleep(interval_s)


def attempt(step: Callable[[], None]) -> None:
    """Run a step; log an error instead of raising it: none may end the agent."""
    try:
        step()
    except OSError as error:
        log.error("step failed, will retry", step=step.__qualname__, error=str(error))
    except Exception:  # a defect
        log.exception("step failed, will retry", step=step.__qualname__)


async def attempt_async(step: Callable[[], Awaitable[object]]) -> None:
    """Like `attempt`, for a coroutine function."""
    try:
        await step()
    except Exception:
        log.exception("step failed, will retry", step=getattr(step, "__qualname__", repr(step)))
