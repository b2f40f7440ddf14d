# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint generate`."""

from __future__ import annotations

import click

from ztctl import output
from ztctl.commands.l7.waypoint.gateway import gateway_manifest
from ztctl.commands.l7.waypoint.options import manifest_options, namespace_option
from ztctl.context import Context, output_option
from ztctl.output import Format


@click.command()
@manifest_options
@namespace_option
@output_option
@click.pass_obj
def generate(
    context: Context, *, name: str, traffic: str | None, class_name: str, namespace: str
) -> None:
    """Print the manifest of a waypoint: a Gateway, as YAML or with -o json.

    \b
    Examples:
      ztctl waypoint generate --for service -n shop > waypoint.yaml
    """
    is_json = context.output_format is Format.JSON
    manifest = gateway_manifest(name, namespace, traffic, class_name)
    click.echo(output.render_data(manifest, Format.JSON if is_json else Format.YAML))
