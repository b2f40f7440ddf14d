# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab down`."""

from __future__ import annotations

import click

from ztctl.commands.lab.options import lab_errors, name_option, print_progress
from ztunnel.lab import Lab


@click.command()
@name_option
def down(name: str) -> None:
    """Remove a lab completely. Safe to repeat.

    Works after crashes, and also if the lab's state directory is missing.
    """
    with lab_errors():
        removed = Lab(name).down()
        for line in removed:
            print_progress(f"removed {line}")
        print_progress(f"lab {name} is down" if removed else f"lab {name}: nothing to remove")
