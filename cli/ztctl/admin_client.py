# SPDX-License-Identifier: Apache-2.0
"""A client of the agent's admin API: HTTP over the node's unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from ztctl.errors import CommandError, NotReachableError

SOCKET = "admin.sock"
TIMEOUT = 5.0  # seconds
far: dict[Path, float] = {}  # run directories whose agent is elsewhere, and their least timeout


def get(run_dir: Path, path: str, timeout: float = TIMEOUT) -> Any:
    """The decoded JSON under `path`, as `/v1/status`. Raises CommandError."""
    return _ask(run_dir, "GET", path, timeout)


def patch(run_dir: Path, path: str, change: Any, timeout: float = TIMEOUT) -> Any:
    """Change what is under `path`; the decoded JSON of the result. Raises CommandError."""
    return _ask(run_dir, "PATCH", path, timeout, json.dumps(change).encode())


def _ask(run_dir: Path, method: str, path: str, timeout: float, sent: bytes | None = None) -> Any:
    connection = _UnixConnection(run_dir / SOCKET, max(timeout, far.get(run_dir, 0.0)))
    asked = f"asked the agent for {path} at {run_dir / SOCKET}"
    try:
        connection.request(method, path, sent)
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReachableError(f"{asked}: {_why(error)}") from error
    finally:
        connection.close()
    if status != http.client.OK:
        said = body.decode(errors="replace").strip()
        raise CommandError(f"{asked}: it answered {status}: {said}; see the agent's log")
    try:
        return json.loads(body)
    except ValueError as error:
        raise CommandError(f"{asked}: the answer is no JSON; is it another program?") from error


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket; start the agent, or name its --run-dir"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens; the agent has ended, see its log and start it"
    if isinstance(error, PermissionError):
        return "permission denied; run as root"
    if isinstance(error, TimeoutError):
        return "no answer in time; see the agent's log"
    return f"{error or type(error).__name__}; see the agent's log"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
