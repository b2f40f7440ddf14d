# SPDX-License-Identifier: Apache-2.0
"""`ztctl stdio-proxy`: connects standard input and output to the agent's admin socket.

`exec` runs this command in an agent's pod. It is not meant for users.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path

import click

from ztctl.admin_client import ADMIN_SOCKET
from ztctl.errors import NotReachableError
from ztctl.targets import RUN_DIR

_BUFFER_BYTES = 1 << 16


@click.command(name="stdio-proxy", hidden=True)
@click.option("--run-dir", type=click.Path(path_type=Path), default=RUN_DIR, show_default=True)
def stdio_proxy(run_dir: Path) -> None:
    """Forward standard input to the agent's admin socket, and its responses to standard output.

    Exits when either side closes. `ztctl --context NAME --transport exec` runs it in agents' pods.
    """
    path = run_dir / ADMIN_SOCKET
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        try:
            agent.connect(str(path))
        except OSError as error:
            raise NotReachableError(
                f"cannot connect to the agent at {path}: {error.strerror}"
            ) from error
        while True:
            readable, _, _ = select.select([stdin, agent], [], [])
            if stdin in readable:
                request = os.read(stdin, _BUFFER_BYTES)
                if not request:
                    return
                agent.sendall(request)
            if agent in readable:
                response = agent.recv(_BUFFER_BYTES)
                if not response:
                    return
                _write_all(stdout, response)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
