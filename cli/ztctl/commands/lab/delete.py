# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab delete`."""

from __future__ import annotations

from pathlib import Path

import click

from ztctl.commands.lab.options import (
    exit_with,
    files_option,
    lab_errors,
    name_option,
    namespace_option,
    print_progress,
)
from ztunnel.lab import Lab, key_of, read_manifests


@click.command()
@files_option(required=False)
@name_option
@namespace_option
@click.argument("kind", required=False)
@click.argument("names", nargs=-1, metavar="NAME...")
def delete(
    *,
    files: tuple[Path, ...],
    name: str,
    namespace: str,
    kind: str | None,
    names: tuple[str, ...],
) -> None:
    """Delete objects by kind and name, or those in manifests.

    \b
    Examples:
      ztctl lab delete deploy my-app
      ztctl lab delete -f policy.yaml
    """
    if not files and not (kind and names):
        raise click.UsageError("missing KIND and NAME, or -f FILE")
    with lab_errors():
        lab = Lab(name, progress=print_progress)
        keys = [key_of(obj) for obj in read_manifests(files)]
        objects = [(key.kind, key.name, key.namespace) for key in keys]
        objects += [(str(kind), each, namespace) for each in names]
        exit_with([problem for each in objects for problem in lab.delete(*each)])
