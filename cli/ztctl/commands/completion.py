# SPDX-License-Identifier: Apache-2.0
"""`ztctl completion`: shell completion scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ztctl.errors import CommandError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      source <(ztctl completion bash)
      ztctl completion fish > ~/.config/fish/completions/ztctl.fish
    """
    completer = get_completion_class(shell)
    if completer is None:
        raise CommandError(f"click has no completion for {shell}; hint: upgrade click")
    click.echo(completer(ctx.find_root().command, {}, "ztctl", "_ZTCTL_COMPLETE").source())
