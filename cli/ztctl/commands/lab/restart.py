# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab restart`."""

from __future__ import annotations

import click

from ztctl.commands.lab.options import (
    component_argument,
    lab_errors,
    name_option,
    print_progress,
)
from ztunnel.lab import Lab


@click.command()
@name_option
@click.option("--kill", is_flag=True, help="Stop it with SIGKILL, to simulate a crash.")
@component_argument
def restart(name: str, kill: bool, node: str, component: str) -> None:
    """Stop and start a node's component, and wait until it is ready."""
    with lab_errors():
        Lab(name, progress=print_progress).restart(node, component, kill=kill)
