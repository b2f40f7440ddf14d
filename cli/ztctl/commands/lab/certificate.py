# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab certificate`."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from ztctl.commands.lab.options import lab_errors, namespace_option
from ztunnel.lab.server_certificates import ROOT_FILE, tls_secret


@click.command()
@namespace_option
@click.option("--secret", required=True, help="Name of the Secret.")
@click.option(
    "--ca-dir",
    "directory",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Directory of the CA, created if it does not exist. Clients trust its {ROOT_FILE}.",
)
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
def certificate(namespace: str, secret: str, directory: Path, hosts: tuple[str, ...]) -> None:
    """Print a Secret with a new certificate for HTTPS servers. Contains a private key.

    HOST is a name, also with a wildcard, or an IP address. Applying the Secret again with another
    certificate renews it.

    \b
    Examples:
      ztctl lab certificate my-app.example --secret my-app-tls --ca-dir ca > secret.yaml
      ztctl lab apply -f secret.yaml
    """
    with lab_errors():
        click.echo(yaml.safe_dump(tls_secret(directory, secret, namespace, hosts), sort_keys=False))
