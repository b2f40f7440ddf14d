# SPDX-License-Identifier: Apache-2.0
"""`ztctl` as a user runs it, and a fake of the agent's admin API."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ztctl.main import cli

Ztctl = Callable[..., Result]


@pytest.fixture
def ztctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ztctl:
    """Run `ztctl ARGUMENTS...` as on a machine without ztunnel."""
    from ztctl import targets

    monkeypatch.delenv("ZTCTL_LAB", raising=False)
    for name in ("RUN_DIR", "PIN_DIR", "LAB_STATE_DIR"):
        monkeypatch.setattr(targets, name, tmp_path / "none" / name.lower())

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, list(arguments))

    return run


class Agent:
    """An HTTP server on `<run_dir>/admin.sock`. `answers` maps paths to plain data.

    Other paths get 404. `patched` has the bodies of PATCH requests, in order.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.answers: dict[str, Any] = {}
        self.patched: list[Any] = []
        run_dir.mkdir(parents=True, exist_ok=True)
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path in agent.answers
                body = json.dumps(agent.answers.get(self.path, {"error": "not found"})).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_PATCH(self) -> None:
                size = int(self.headers["Content-Length"])
                agent.patched.append(json.loads(self.rfile.read(size)))
                self.do_GET()

            def address_string(self) -> str:
                return "unix"

            def log_message(self, format: str, *args: Any) -> None:
                """Discards the access log."""

        self._server = socketserver.ThreadingUnixStreamServer(str(run_dir / "admin.sock"), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Agent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """A running agent whose run directory is `agent.run_dir`."""
    with Agent(tmp_path / "run") as fake:
        yield fake
