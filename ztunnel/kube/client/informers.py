# SPDX-License-Identifier: Apache-2.0
"""kubernetes' informers, told to notice a dead connection and not to hammer a dead server."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kubernetes.informer import ADDED, DELETED, MODIFIED, SharedInformer

RESYNC = 240  # seconds: the server ends each watch then, and everything is looked at anew
GRACE = 30  # more seconds without a byte, and the connection is dead
LIST_TIMEOUT = 60  # seconds
PAUSE = 1.0  # seconds after a failure
STOP_TIMEOUT = 1.0

logging.getLogger("kubernetes.informer").setLevel(
    logging.CRITICAL
)  # tracebacks; we pause and retry


def informer(
    list_func: Callable[..., Any],
    on_event: Callable[[Any], None],
    stopped: threading.Event,
    **selectors: Any,
) -> SharedInformer:
    """An informer, not started; `on_event(object)` is called when one comes, changes or goes."""
    made = SharedInformer(_patient(list_func, stopped), resync_period=RESYNC, **selectors)
    for kind in (ADDED, MODIFIED, DELETED):
        made.add_event_handler(kind, on_event)
    return made


def stop_all(informers: Iterable[Any]) -> None:
    """Stop them; one that is just connecting ends by itself, later."""
    stops = [threading.Thread(target=each.stop, daemon=True) for each in informers]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join(STOP_TIMEOUT)


def _patient(list_func: Callable[..., Any], stopped: threading.Event) -> Callable[..., Any]:
    @functools.wraps(list_func)  # the informer reads its documentation
    def listed(*args: Any, **kwargs: Any) -> Any:
        patience = RESYNC + GRACE if kwargs.get("watch") else LIST_TIMEOUT
        try:
            return list_func(*args, _request_timeout=(5, patience), **kwargs)
        except Exception:
            stopped.wait(PAUSE)
            raise

    return listed
