# SPDX-License-Identifier: Apache-2.0
"""Command-line options of the unprivileged processes of a node, and what they do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ztunnel.proxy.process import privileges

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

run_dir: Decorator = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/ztunnel"),
    show_default=True,
    help="Directory of the agent's socket.",
)
health_port: Decorator = click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port of /healthz/live and /healthz/ready; 0 disables them.",
)


def uid(default: int) -> Decorator:
    """The option `--uid`."""
    return click.option(
        "--uid",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Numeric user and group to switch to if started as root.",
    )


def drop_privileges(number: int) -> None:
    """Switch to the user of `--uid`. Raises ClickException."""
    try:
        privileges.drop(number)
    except (privileges.PrivilegeError, OSError) as error:
        raise click.ClickException(f"cannot drop privileges: {error}") from error


def listen_for_probes(port: int) -> socket.socket:
    """A listener on `--health-port`, for both families. Raises ClickException."""
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
        raise click.ClickException(f"cannot listen on port {port} for probes: {error}") from error
