# SPDX-License-Identifier: Apache-2.0
"""Runs the worker processes: forks them, replaces those that exit or hang, and forwards signals.

    forked ──heartbeats──▶ running ──none for `watchdog_timeout`──▶ killed ──▶ exited ──▶ forked
                                                                          after RESTART_DELAY_S

The supervisor is as unprivileged as its workers and handles no connection. If it dies, the kernel
kills its workers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterable

import structlog

from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.process.health_server import HealthServer
from ztunnel.proxy.process.heartbeat import HeartbeatTable, WorkerState
from ztunnel.proxy.process.signals import Signals
from ztunnel.telemetry import log_writer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESTART_DELAY_S = 0.5  # limits the CPU that a worker which exits at once can use
WATCHDOG_TIMEOUT_S = 10.0
CHECKS_PER_TIMEOUT = 10
NOT_LIVE_AFTER = 0.5  # of the timeout without a heartbeat
_PR_SET_PDEATHSIG = 1  # prctl(2)

log = structlog.get_logger()


class Supervisor:
    """Runs `work(index, heartbeats)`, which returns an exit status, in `count` processes."""

    def __init__(
        self,
        count: int,
        work: Callable[[int, HeartbeatTable], int],
        *,
        watchdog_timeout: float = WATCHDOG_TIMEOUT_S,
    ) -> None:
        """A worker without a heartbeat for `watchdog_timeout` seconds is killed and replaced."""
        self._count = count
        self._work = work
        self._watchdog_timeout = watchdog_timeout
        self._heartbeats = HeartbeatTable(count)
        self._loop = EventLoop()
        self._children: dict[int, int] = {}  # pid → index
        self._health_listener: socket.socket | None = None
        self._checked_at = 0.0
        self._stopping = False
        self._exit_status = 0

    def serve_health(self, listener: socket.socket, node_addresses: Iterable[str] = ()) -> None:
        """Answer probes on a listening socket while the supervisor runs."""
        self._health_listener = listener
        checks = {"/healthz/live": self.not_live, "/healthz/ready": self.not_ready}
        HealthServer(self._loop, listener, checks, node_addresses)

    def run(self) -> int:
        """Run until a stop signal and the exit of all workers; their highest exit status."""
        self._signals = Signals(self._loop, (*STOP_SIGNALS, signal.SIGCHLD), self._on_signals)
        for index in range(self._count):
            self._start_worker(index)
        self._check_heartbeats()
        self._loop.run()
        return self._exit_status

    def not_live(self) -> list[str]:
        """Why the proxy is not live: workers that are not running or miss heartbeats."""
        running = set(self._children.values())
        missing = [
            f"worker {index} is not running" for index in range(self._count) if index not in running
        ]
        return missing + [
            f"worker {index} has no heartbeat for {self._heartbeats.age(index):.1f} s"
            for index in sorted(running)
            if self._heartbeats.age(index) > self._watchdog_timeout * NOT_LIVE_AFTER
        ]

    def not_ready(self) -> list[str]:
        """Why the proxy is not ready: not live, or workers that start or drain."""
        states = [(index, self._heartbeats.state(index)) for index in self._children.values()]
        return self.not_live() + [
            f"worker {index} is {state.name.lower()}"
            for index, state in sorted(states)
            if state is not WorkerState.SERVING
        ]

    def _start_worker(self, index: int) -> None:
        if self._stopping:
            self._stop_if_no_workers()
            return
        handled = (*STOP_SIGNALS, signal.SIGCHLD)
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)  # until each side has its own handlers
        self._heartbeats.beat(index, WorkerState.STARTING)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in handled:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
            _exit_with_parent(parent)
            if self._health_listener is not None:
                self._health_listener.close()
            os._exit(self._run_worker(index))
        self._children[pid] = index
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)

    def _run_worker(self, index: int) -> int:
        try:
            return self._work(index, self._heartbeats)
        except BaseException as error:
            log.error("worker failed", worker=index, exc_info=error)
            return 1
        finally:
            log_writer.flush()  # `os._exit` runs no exit handlers

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
                if code != -signal.SIGTERM:  # that one had no handler yet
                    self._exit_status = max(self._exit_status, abs(code))
                continue
            log.error("worker exited", worker=index, status=code)
            self._loop.call_later(RESTART_DELAY_S, lambda index=index: self._start_worker(index))  # type: ignore[misc]

    def _check_heartbeats(self) -> None:
        """Kill workers that hang, unless the supervisor itself was not scheduled."""
        interval = self._watchdog_timeout / CHECKS_PER_TIMEOUT
        on_time = self._loop.now - self._checked_at < 3 * interval
        self._checked_at = self._loop.now
        self._loop.call_later(interval, self._check_heartbeats)
        for pid, index in self._children.items():
            age = self._heartbeats.age(index)
            if on_time and age > self._watchdog_timeout:
                log.error("worker hung", worker=index, pid=pid, heartbeat_age=age)
                os.kill(pid, signal.SIGKILL)

    def _on_signals(self, numbers: bytes) -> None:
        if any(number in STOP_SIGNALS for number in numbers):
            self._stopping = True
            for pid in self._children:
                os.kill(pid, signal.SIGTERM)
        self._reap()
        self._stop_if_no_workers()

    def _stop_if_no_workers(self) -> None:
        if self._stopping and not self._children:
            self._loop.stop()


def _exit_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent exits for any reason."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it exited before the call
        os._exit(1)
