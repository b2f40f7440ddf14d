# SPDX-License-Identifier: Apache-2.0
"""The load generator: compiled once per run, started wherever a contender has its client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

SOURCE = Path(__file__).with_name("load.c")
_EXTRA_TIMEOUT_S = 60.0  # seconds beyond the duration of the job
_HOLD_TIMEOUT_S = 300.0

Place = Callable[[list[str]], list[str]]  # wraps a command line to run it in a place
Report = dict[str, Any]  # the JSON line that a job prints, see load.c


class LoadError(Exception):
    """A job failed; the text is its output."""


def build(directory: Path) -> Path:
    """Compile the load generator; return the path of the program."""
    program = directory / "load"
    subprocess.run(["gcc", "-O2", "-o", str(program), str(SOURCE)], check=True)
    return program


class Load:
    """The jobs of load.c. Each raises LoadError."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def argv(self, *words: object) -> list[str]:
        """The command line of a job."""
        return [str(self._program), *map(str, words)]

    def start(self, place: Place, *words: object) -> subprocess.Popen[str]:
        """Start a job."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            place(self.argv(*words)), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, place: Place, *words: object, seconds: float) -> Report:
        """Run a job for that many seconds; return its report."""
        return finish(self.start(place, *words), seconds)


def finish(job: subprocess.Popen[str], seconds: float) -> Report:
    """Wait for a job; return its report."""
    try:
        output, complaint = job.communicate(timeout=seconds + _EXTRA_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        job.kill()
        job.communicate()
        raise LoadError(f"{' '.join(map(str, job.args))}: no end") from error  # type: ignore[arg-type]
    if job.returncode:
        raise LoadError(complaint.strip() or f"exit status {job.returncode}")
    report: Report = json.loads(output)
    if report.get("errors"):
        raise LoadError(f"{report['errors']} connections failed, {report['count']} did not")
    return report


class Holder:
    """Connections that stay open until the end of the `with` block."""

    def __init__(self, load: Load, place: Place, address: tuple[str, int]) -> None:
        self._job = load.start(place, "hold", *address)

    def __enter__(self) -> Holder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._job.communicate(timeout=_HOLD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._job.kill()
            self._job.communicate()

    def open(self, total: int) -> Report:
        """Open connections until there are `count`."""
        return self._ask(f"open {total}")

    def check(self) -> Report:
        """Exchange a byte on each connection."""
        return self._ask("check")

    def _ask(self, question: str) -> Report:
        assert self._job.stdin is not None
        assert self._job.stdout is not None
        self._job.stdin.write(question + "\n")
        self._job.stdin.flush()
        answer = self._job.stdout.readline()
        if not answer:
            raise LoadError(f"{question}: the client ended")
        report: Report = json.loads(answer)
        if report["errors"]:
            raise LoadError(f"{question}: {report['errors']} errors")
        return report
