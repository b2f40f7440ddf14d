# SPDX-License-Identifier: Apache-2.0
"""`ztctl completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ztctl.errors import CommandError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete ztctl's commands and options.

    \b
    Examples:
      source <(ztctl completion bash)
      ztctl completion fish > ~/.config/fish/completions/ztctl.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise CommandError(f"this click has no completion for {shell}; upgrade click")
    click.echo(found(ctx.find_root().command, {}, "ztctl", "_ZTCTL_COMPLETE").source())
