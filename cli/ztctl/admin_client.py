# SPDX-License-Identifier: Apache-2.0
"""Client of the agent's admin API: HTTP over the agent's unix socket."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from ztctl.errors import CommandError, NotReachableError
from ztunnel.ipc.unix_http import UnixHttpConnection

ADMIN_SOCKET = "admin.sock"
TIMEOUT_S = 5.0
# Run directories whose socket is a proxy to a remote agent, and the least timeout of a request.
min_timeouts_s: dict[Path, float] = {}


def get(run_dir: Path, path: str, timeout_s: float = TIMEOUT_S) -> Any:
    """The decoded JSON at `path`, for example `/v1/status`. Raises CommandError."""
    return _request(run_dir, "GET", path, timeout_s)


def patch(run_dir: Path, path: str, change: Any, timeout_s: float = TIMEOUT_S) -> Any:
    """Apply `change` to the resource at `path`; returns the result. Raises CommandError."""
    return _request(run_dir, "PATCH", path, timeout_s, json.dumps(change).encode())


def _request(
    run_dir: Path, method: str, path: str, timeout_s: float, body: bytes | None = None
) -> Any:
    socket_path = run_dir / ADMIN_SOCKET
    connection = UnixHttpConnection(socket_path, max(timeout_s, min_timeouts_s.get(run_dir, 0.0)))
    failed = f"{method} {path} at {socket_path} failed"
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        status, answer = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReachableError(f"{failed}: {_explain(error)}") from error
    finally:
        connection.close()
    if status != http.client.OK:
        detail = answer.decode(errors="replace").strip()
        raise CommandError(f"{failed}: HTTP status {status}: {detail}; hint: see the agent's log")
    try:
        return json.loads(answer)
    except ValueError as error:
        raise CommandError(
            f"{failed}: the response is not JSON; hint: check that the socket belongs to an agent"
        ) from error


def _explain(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the socket does not exist; hint: start the agent, or set --run-dir"
    if isinstance(error, ConnectionRefusedError):
        return "no process listens there; hint: start the agent; its log has the reason it stopped"
    if isinstance(error, PermissionError):
        return "permission denied; hint: run as root"
    if isinstance(error, TimeoutError):
        return "timed out; hint: see the agent's log"
    return f"{error or type(error).__name__}; hint: see the agent's log"
