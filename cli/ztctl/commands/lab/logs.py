# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab logs`."""

from __future__ import annotations

import os

import click

from ztctl.commands.lab.options import lab_errors, name_option, namespace_option
from ztunnel.lab import Lab


@click.command()
@name_option
@namespace_option
@click.option("-f", "--follow", is_flag=True, help="Follow the log.")
@click.option("--tail", "lines", type=int, default=100, show_default=True, help="Lines to show.")
@click.argument("target", metavar="NODE|POD")
@click.argument("component", required=False, metavar="[agent|proxy|gateway|dns|CONTAINER]")
def logs(
    *,
    name: str,
    namespace: str,
    follow: bool,
    lines: int,
    target: str,
    component: str | None,
) -> None:
    """Show the log of a node's component or of a pod's container.

    \b
    Examples:
      ztctl lab logs node1 proxy -f
      ztctl lab logs deploy/my-app
    """
    with lab_errors():
        paths = Lab(name).log_paths(target, component, namespace)
    argv = ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), *map(str, paths)]
    os.execvp(argv[0], argv)
