# SPDX-License-Identifier: Apache-2.0
"""`ztctl version`: the versions of ztunnel, Python and the kernel."""

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
    """Print the version; with -o json or yaml also the versions of Python and the kernel."""
    if context.output_format is Format.TABLE:
        click.echo(f"ztctl {__version__}")
        return
    versions = {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "compiled": compiled.available() is not None,
    }
    click.echo(output.render_data(versions, context.output_format))
