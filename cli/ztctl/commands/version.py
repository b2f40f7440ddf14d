# SPDX-License-Identifier: Apache-2.0
"""`ztctl version`."""

from __future__ import annotations

import platform

import click

from ztctl import output
from ztctl.context import Context, output_option
from ztctl.output import Format
from ztunnel import __version__, compiled


@click.command()
@output_option
@click.pass_obj
def version(context: Context) -> None:
    """Print the version, and of Python and the kernel under it."""
    if context.form is Format.TABLE:
        click.echo(f"ztctl {__version__}")
        return
    found = {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "compiled": compiled.current() is not None,
    }
    click.echo(output.data(found, context.form))
