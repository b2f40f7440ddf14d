# SPDX-License-Identifier: Apache-2.0
"""`ztctl relay`: standard input and output as a connection to the agent's admin socket.

What `forward` starts inside an agent's pod; of no use by hand.
"""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import click

from ztctl.admin_client import SOCKET
from ztctl.errors import NotReachableError
from ztctl.targets import RUN_DIR

_BUFFER = 1 << 16


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=RUN_DIR, show_default=True)
def relay(run_dir: Path) -> None:
    """Carry standard input to the agent's admin socket and its answers to standard output.

    Ends when either side does. `ztctl --context NAME` runs it in agents' pods.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        try:
            agent.connect(str(run_dir / SOCKET))
        except OSError as error:
            raise NotReachableError(f"no agent at {run_dir / SOCKET}: {error.strerror}") from error
        while True:
            readable, _, _ = select.select([0, agent.fileno()], [], [])
            if 0 in readable:
                asked = os.read(0, _BUFFER)
                if not asked:
                    return
                agent.sendall(asked)
            if agent.fileno() in readable:
                answered = agent.recv(_BUFFER)
                if not answered:
                    return
                _write_all(answered)


def _write_all(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
