# SPDX-License-Identifier: Apache-2.0
"""Writes standard error in a thread, so that no log can block or fail the process.

    write() --> bounded queue --> thread --> file descriptor
                   full: the lines are dropped       blocks, or fails: they are dropped
                   and counted                       and counted

A pipe whose reader has stopped blocks its writers, and a full disk fails them. An agent or a
worker that waits for its log forwards nothing, so it drops lines instead. `log_drops` counts them.

`install` replaces `sys.stderr`: structlog, the access log, tracebacks, warnings and the standard
library's `logging` all write there. The descriptor's flags remain, because other processes share
them.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque

from ztunnel.telemetry.log_drop_counters import LogDropCounters, LogDropReason, log_drops

MAX_QUEUED_BYTES = 4 << 20  # of a process; further lines are dropped
WRITE_BYTES = 64 << 10  # of one system call, the default capacity of a pipe
RETRY_INTERVAL_S = 0.1  # after a write that failed
EXIT_FLUSH_TIMEOUT_S = 1.0


class LogWriter:
    """The queue and the thread of one descriptor. `write` may be called from any thread.

    The thread starts with the first line: after a fork, and after privileges are dropped.
    """

    def __init__(self, fd: int, drops: LogDropCounters = log_drops) -> None:
        self.fd = fd
        self._drops = drops
        self._reset()

    def _reset(self) -> None:
        """Begin without thread and lines, also in a forked process."""
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0  # including what the thread is writing
        self._is_waiting = False
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Queue complete lines, or drop them. Never blocks, never raises."""
        with self._changed:
            if self._queued_bytes + len(data) > MAX_QUEUED_BYTES or not self._is_started():
                self._drops.count(LogDropReason.QUEUE_FULL, _lines(data))
                return
            self._queue.append(data)
            self._queued_bytes += len(data)
            if self._is_waiting:
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written or dropped; False if that takes longer."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._queued_bytes:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.05))
        return True

    def _is_started(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no memory for a thread, or the interpreter is exiting
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if not self._write_all(batch):
                self._drops.count(LogDropReason.WRITE_FAILED, _lines(batch))
                time.sleep(RETRY_INTERVAL_S)
            with self._changed:
                self._queued_bytes -= len(batch)
                self._changed.notify_all()

    def _next_batch(self) -> bytes:
        with self._changed:
            while not self._queue:
                self._is_waiting = True
                self._changed.wait()
            self._is_waiting = False
            batch = [self._queue.popleft()]
            size = len(batch[0])
            while self._queue and size + len(self._queue[0]) <= WRITE_BYTES:
                size += len(self._queue[0])
                batch.append(self._queue.popleft())
        return b"".join(batch)

    def _write_all(self, data: bytes) -> bool:
        """Write to the descriptor, which may block this thread; False if it fails."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.fd, left) :]
            except BlockingIOError:  # another process made the descriptor non-blocking
                select.select([], [self.fd], [], 1.0)
            except (OSError, ValueError):  # full disk, no reader, closed descriptor
                return False
        return True


class LogStream(io.BufferedIOBase):
    """The binary file of `sys.stderr`: writes never block and never raise."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        octets = bytes(data)  # type: ignore[call-overload]  # any buffer
        if octets:
            self._writer.write(octets)
        return len(octets)

    def flush(self) -> None:
        """Nothing is buffered here."""

    def fileno(self) -> int:
        return self._writer.fd

    def isatty(self) -> bool:
        return os.isatty(self._writer.fd)

    def close(self) -> None:
        """Stay open: the descriptor belongs to the process."""


_installed: list[LogWriter] = []  # at most one


def install() -> None:
    """Replace `sys.stderr`. Idempotent; nothing changes if it is not a file, as in tests."""
    try:
        fd = sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return
    if isinstance(sys.stderr.buffer, LogStream):
        return
    writer = LogWriter(fd)
    _installed[:] = [writer]
    sys.stderr = io.TextIOWrapper(
        LogStream(writer),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def flush(timeout_s: float = EXIT_FLUSH_TIMEOUT_S) -> None:
    """Wait for what is queued, but no longer than `timeout_s`."""
    for writer in _installed:
        writer.flush(timeout_s)


def _after_fork() -> None:
    for writer in _installed:
        writer._reset()


def _lines(data: bytes) -> int:
    return data.count(b"\n") or 1


os.register_at_fork(after_in_child=_after_fork)
atexit.register(flush)
