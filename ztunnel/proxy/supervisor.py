# SPDX-License-Identifier: Apache-2.0
"""Several workers: fork them, replace one that dies, pass signals on.

The supervisor is as unprivileged as its workers and touches no connection.
May import the standard library and structlog.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import structlog

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESTART_DELAY = 0.5  # seconds: a worker that dies at once must not eat the node

log = structlog.get_logger()


class Supervisor:
    """Keeps `count` children running `work(index)`, which returns an exit status."""

    def __init__(self, count: int, work: Callable[[int], int]) -> None:
        self._count = count
        self._work = work
        self._children: dict[int, int] = {}  # pid → index
        self._stopping = False

    def run(self) -> int:
        """Until a signal and the end of all workers; the worst of their exit statuses."""
        for number in SIGNALS:
            signal.signal(number, self._stop)
        for index in range(self._count):
            self._start(index)
        worst = 0
        while self._children:
            worst = max(worst, self._reap())
        return worst

    def _start(self, index: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until each side has its own handler
        pid = os.fork()
        if pid == 0:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os._exit(self._guarded(index))
        self._children[pid] = index
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if self._stopping:  # the signal came before there was this child
            os.kill(pid, signal.SIGTERM)

    def _guarded(self, index: int) -> int:
        try:
            return self._work(index)
        except BaseException as error:
            log.error("worker failed", worker=index, exc_info=error)
            return 1

    def _reap(self) -> int:
        pid, status = os.wait()
        index = self._children.pop(pid, None)
        code = os.waitstatus_to_exitcode(status)
        if index is None or self._stopping:
            return 0 if code == -signal.SIGTERM else abs(code)  # it may not have begun yet
        log.error("worker ended", worker=index, status=code)
        time.sleep(RESTART_DELAY)
        self._start(index)
        return 0

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True
        for pid in self._children:
            os.kill(pid, signal.SIGTERM)
