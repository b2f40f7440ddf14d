# SPDX-License-Identifier: Apache-2.0
"""`ztunnel loader`: load the data path from the command line."""

from __future__ import annotations

from pathlib import Path

import click

from ztunnel.datapath import requirements
from ztunnel.datapath.bpf import loader


@click.command(name="loader")
@click.option(
    "--cgroup",
    type=click.Path(path_type=Path),
    help="Cgroup to attach to. Default: the cgroup v2 root.",
)
@click.option(
    "--pin-dir", type=click.Path(path_type=Path), default=loader.DEFAULT_PIN_DIR, show_default=True
)
def command(cgroup: Path | None, pin_dir: Path) -> None:
    """Compile the BPF programs, attach them to a cgroup and pin them.

    Does nothing if the pinned programs are current. The agent runs this command itself.
    """
    try:
        click.echo(loader.load(cgroup or requirements.cgroup2_root(), pin_dir))
    except (loader.LoadError, OSError, requirements.RequirementError) as error:
        raise click.ClickException(str(error)) from error
