# SPDX-License-Identifier: Apache-2.0
"""The `ztunnel` command: the mesh's processes. Each is imported only when it is run.

The proxy must never load the agent's libraries (nor BCC), and the other way round.
"""

from __future__ import annotations

import importlib
import sys

import click

from ztunnel import __version__, compiled

_COMMANDS = {
    "agent": "ztunnel.agent.cli",
    "proxy": "ztunnel.proxy.cli",
    "loader": "ztunnel.datapath.cli",
    "controller": "ztunnel.controller.cli",
}


# structlog loads rich, 3 MB, wherever something brought it (as import-linter does): for tracebacks
# in colour with the variables of every frame, which no log of ours may have (`telemetry.logs`).
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        if cmd_name == "proxy":
            try:
                compiled.use()
            except compiled.CompiledError as error:
                raise click.ClickException(f"{compiled.VARIABLE}: {error}") from None
        found: click.Command = importlib.import_module(module).command
        return found


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ztunnel")
def cli() -> None:
    """An ambient service mesh: a node's agent, proxy and BPF loader, and the cluster's signer.

    People mostly use `ztctl`; these are the processes that it talks to.
    """


if __name__ == "__main__":
    sys.exit(cli())
