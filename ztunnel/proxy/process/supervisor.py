# SPDX-License-Identifier: Apache-2.0
"""Keeps workers running: fork them, replace one that dies or hangs, pass signals on, be asked.

    forked ──beats──▶ alive ──silent for `hang` seconds──▶ killed ──▶ ended ──delay──▶ forked

The supervisor is as unprivileged as its workers and touches no connection. One that dies takes its
workers with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable

import structlog

from ztunnel.proxy.io.event_loop import Loop
from ztunnel.proxy.process.health_server import Probes
from ztunnel.proxy.process.heartbeat import HeartbeatTable, State
from ztunnel.proxy.process.signals import Signals

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESTART_DELAY = 0.5  # seconds: a worker that dies at once must not eat the node
HANG = 10.0  # seconds without a turn of its loop until a worker is given up
CHECKS = 10  # looks at the workers in that time
LATE = 0.5  # of it: then a worker is not live
_PR_SET_PDEATHSIG = 1  # prctl(2)

log = structlog.get_logger()


class Supervisor:
    """Keeps `count` children running `work(index, beats)`, which returns an exit status."""

    def __init__(
        self, count: int, work: Callable[[int, HeartbeatTable], int], *, hang: float = HANG
    ) -> None:
        self._count = count
        self._work = work
        self._hang = hang
        self._beats = HeartbeatTable(count)
        self._loop = Loop()
        self._children: dict[int, int] = {}  # pid → index
        self._listener: socket.socket | None = None
        self._checked = 0.0
        self._stopping = False
        self._worst = 0

    def answer_probes(self, listener: socket.socket) -> None:
        """Answer on a listening socket, for as long as it runs."""
        self._listener = listener
        verdicts = {"/healthz/live": self.not_live, "/healthz/ready": self.not_ready}
        Probes(self._loop, listener, verdicts)

    def run(self) -> int:
        """Until a signal and the end of all workers; the worst of their exit statuses."""
        self._signals = Signals(self._loop, (*SIGNALS, signal.SIGCHLD), self._signalled)
        for index in range(self._count):
            self._start(index)
        self._check()
        self._loop.run()
        return self._worst

    def not_live(self) -> list[str]:
        """Why it is not live: workers whose loop does not turn, or that are not there."""
        running = set(self._children.values())
        there = range(self._count)
        gone = [f"worker {index} is not there" for index in there if index not in running]
        return gone + [
            f"worker {index} is silent for {self._beats.age(index):.1f} s"
            for index in sorted(running)
            if self._beats.age(index) > self._hang * LATE
        ]

    def not_ready(self) -> list[str]:
        """Why it is not ready: that, and workers that do not know the mesh, or drain."""
        states = [(index, self._beats.state(index)) for index in sorted(self._children.values())]
        return self.not_live() + [
            f"worker {index} is {state.name.lower()}"
            for index, state in states
            if state is not State.SERVING
        ]

    # Children

    def _start(self, index: int) -> None:
        if self._stopping:
            self._end_if_alone()
            return
        watched = (*SIGNALS, signal.SIGCHLD)
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # until each side has its own handler
        self._beats.beat(index, State.STARTING)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in watched:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
            _die_with(parent)
            if self._listener is not None:
                self._listener.close()
            os._exit(self._guarded(index))
        self._children[pid] = index
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)

    def _guarded(self, index: int) -> int:
        try:
            return self._work(index, self._beats)
        except BaseException as error:
            log.error("worker failed", worker=index, exc_info=error)
            return 1

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            index = self._children.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            if index is None:
                continue
            if self._stopping:
                began = code != -signal.SIGTERM  # it may not have begun yet
                self._worst = max(self._worst, abs(code) if began else 0)
                continue
            log.error("worker ended", worker=index, status=code)
            self._loop.call_later(RESTART_DELAY, lambda index=index: self._start(index))  # type: ignore[misc]

    def _check(self) -> None:
        """Give up workers that hang, unless it is ourselves who were not running."""
        step = self._hang / CHECKS
        on_time = self._loop.now - self._checked < 3 * step
        self._checked = self._loop.now
        self._loop.call_later(step, self._check)
        for pid, index in self._children.items():
            if on_time and self._beats.age(index) > self._hang:
                log.error("worker hangs", worker=index, pid=pid, silent=self._beats.age(index))
                os.kill(pid, signal.SIGKILL)

    def _signalled(self, numbers: bytes) -> None:
        if any(number in SIGNALS for number in numbers):
            self._stopping = True
            for pid in self._children:
                os.kill(pid, signal.SIGTERM)
        self._reap()
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._stopping and not self._children:
            self._loop.stop()


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent does, whatever ends that."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        os._exit(1)
