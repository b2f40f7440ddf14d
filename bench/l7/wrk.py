# SPDX-License-Identifier: Apache-2.0
"""The HTTP load generator: wrk, with one thread and kept-alive connections (closed loop)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_EXTRA_TIMEOUT_S = 30.0  # seconds beyond the duration of the job
_REQUEST_TIMEOUT_S = 5  # wrk counts slower requests as errors
# wrk calls done() at the end; times are in microseconds.
_REPORT = """\
done = function(summary, latency, requests)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50": %.1f, "p99": %.1f, "errors": %d, "non2xx": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.timeout, errors.status))
end
"""

Place = Callable[[list[str]], list[str]]  # wraps a command line to run it in a place


class WrkError(Exception):
    """A job failed, or some of its requests did; the text says what happened."""


@dataclass(frozen=True)
class HttpReport:
    """The result of a job. `p50`, `p99`: microseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class Wrk:
    """Runs wrk. `directory`: for its script, readable in pods."""

    def __init__(self, directory: Path) -> None:
        self._script = directory / "report.lua"
        self._script.write_text(_REPORT)

    def run(self, place: Place, url: str, connections: int, seconds: float) -> HttpReport:
        """Send requests for whole seconds, at least one. Raises WrkError."""
        duration = max(1, round(seconds))
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--latency"]
        argv += ["--timeout", f"{_REQUEST_TIMEOUT_S}s", "-s", str(self._script), url]
        done = subprocess.run(
            place(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=duration + _EXTRA_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise WrkError((done.stderr or done.stdout).strip())
        found = json.loads(done.stderr.strip().splitlines()[-1])
        if found["errors"] or found["non2xx"] or not found["requests"]:
            raise WrkError(f"requests failed: {found}")
        return HttpReport(found["requests"], found["seconds"], found["p50"], found["p99"])


def absent() -> str | None:
    """Why the benchmark cannot run, with a hint; None if it can."""
    missing = [name for name in ("wrk", "nginx") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found in PATH; hint: run scripts/setup bench"
    return None
