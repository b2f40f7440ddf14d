# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab kill`."""

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
@component_argument
def kill(name: str, node: str, component: str) -> None:
    """Kill a node's component with SIGKILL. It stays dead until `ztctl lab start`."""
    with lab_errors():
        Lab(name).kill(node, component)
    print_progress(f"{node}: {component} killed")
