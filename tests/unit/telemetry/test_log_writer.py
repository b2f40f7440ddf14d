# SPDX-License-Identifier: Apache-2.0
"""Logging never blocks and never raises: a reader that stopped, a full disk, no reader at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ztunnel.telemetry.log_drop_counters import LogDropCounters, LogDropReason
from ztunnel.telemetry.log_writer import MAX_QUEUED_BYTES, LogWriter

LINE = b"x" * 999 + b"\n"
MAX_WRITE_S = 0.5  # of one call; a blocked one never returns


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def test_lines_arrive_complete_and_in_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], LogDropCounters())
    for number in range(1000):
        writer.write(f"{number}\n".encode())
    assert writer.flush(10)
    assert os.read(pipe[0], 65536) == b"".join(f"{number}\n".encode() for number in range(1000))


def test_full_pipe_drops_and_counts_lines_without_blocking(pipe: tuple[int, int]) -> None:
    drops = LogDropCounters()
    writer = LogWriter(pipe[1], drops)
    total = 3 * MAX_QUEUED_BYTES // len(LINE)
    longest = 0.0
    for _ in range(total):
        before = time.monotonic()
        writer.write(LINE)
        longest = max(longest, time.monotonic() - before)
    assert longest < MAX_WRITE_S
    dropped = drops.by_reason[LogDropReason.QUEUE_FULL]
    assert dropped > total // 2
    assert not writer.flush(0.1)

    read = 0
    while not writer.flush(0.01):  # the reader is back: what is queued arrives, and later lines
        read += len(os.read(pipe[0], 1 << 16))
    writer.write(b"later\n")
    assert writer.flush(10)
    os.set_blocking(pipe[0], False)
    rest = b""
    while not rest.endswith(b"later\n"):
        rest += os.read(pipe[0], 1 << 16)
    assert (read + len(rest) - len(b"later\n")) // len(LINE) == total - dropped


def test_full_disk_drops_and_counts_lines() -> None:
    drops = LogDropCounters()
    with open("/dev/full", "wb", buffering=0) as full:
        writer = LogWriter(full.fileno(), drops)
        for _ in range(10):
            writer.write(LINE)
        assert writer.flush(10)
    assert drops.by_reason[LogDropReason.WRITE_FAILED] == 10


def test_lost_reader_drops_and_counts_lines(pipe: tuple[int, int]) -> None:
    drops = LogDropCounters()
    os.close(pipe[0])
    writer = LogWriter(pipe[1], drops)
    writer.write(LINE + LINE)
    assert writer.flush(10)
    assert drops.by_reason[LogDropReason.WRITE_FAILED] == 2


def test_non_blocking_pipe_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    drops = LogDropCounters()
    writer = LogWriter(pipe[1], drops)
    for _ in range(200):
        writer.write(LINE)
    read = 0
    while read < 200 * len(LINE):
        read += len(os.read(pipe[0], 65536))
    assert writer.flush(10)
    assert drops.flush() is None


# A process whose every kind of log output goes to standard error, then reports on its output.
PROCESS = """
import asyncio, logging, os, sys, time, warnings
import structlog
from ztunnel.telemetry import logs, log_writer
from ztunnel.telemetry.access_log import AccessLog, configured_renderer
from ztunnel.telemetry.log_drop_counters import log_drops
logs.configure_logs(sys.argv[1])
log = structlog.get_logger()
turns = []
access = AccessLog(turns.append, configured_renderer())
before = time.monotonic()
for number in range(20000):
    log.info("event", number=number, text="x" * 400)
    access.write("info", "connection", {"number": number, "text": "x" * 400})
    turns.pop()()
logging.getLogger("asyncio").error("from the standard library")
print("direct", file=sys.stderr)
warnings.warn("a warning")
child = os.fork()
if child == 0:
    log.info("from the child")
    log_writer.flush(0.1)
    os._exit(0)
os.waitpid(child, 0)
print(time.monotonic() - before, sum(log_drops.by_reason.values()), flush=True)
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("target", ["full pipe", "/dev/full"])
def test_process_survives_standard_error_that_takes_nothing(log_format: str, target: str) -> None:
    read, write = os.pipe()
    if target == "/dev/full":
        os.close(write)
        write = os.open(target, os.O_WRONLY)
    try:
        process = subprocess.run(
            [sys.executable, "-c", PROCESS, log_format],
            stdout=subprocess.PIPE,
            stderr=write,
            timeout=60,
            check=False,
        )
    finally:
        os.close(read)
        os.close(write)
    assert process.returncode == 0
    seconds, dropped = process.stdout.split()
    assert float(seconds) < 30
    assert int(dropped) > 1000


def test_last_lines_before_an_exit_are_written() -> None:
    code = (
        "import structlog, sys; from ztunnel.telemetry import logs; logs.configure_logs('json');"
        "log = structlog.get_logger(); [log.info('line', number=n) for n in range(500)];"
        "sys.exit('the reason')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    assert process.returncode == 1
    lines = process.stderr.splitlines()
    assert len(lines) == 501
    assert lines[-1] == b"the reason"
