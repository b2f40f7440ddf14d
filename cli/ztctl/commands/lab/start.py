# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab start`."""

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
def start(name: str, node: str, component: str) -> None:
    """Start a node's component, and wait until it is ready."""
    with lab_errors():
        Lab(name, progress=print_progress).start(node, component)
