# SPDX-License-Identifier: Apache-2.0
"""The `ztunnel` command: the processes of the mesh. Each subcommand imports only its own package.

The proxy must never load the agent's libraries or BCC, and the agent must never load the proxy's.
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
    "gateway": "ztunnel.gateway.cli",
    "envoy-api": "ztunnel.gateway.api_cli",
}


# If rich is installed, structlog imports it (3 MB) for tracebacks that show the variables of every
# frame. Logs must not contain these (`telemetry.logs`).
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
                compiled.load()
            except compiled.CompiledError as error:
                raise click.ClickException(f"{compiled.VARIABLE}: {error}") from None
        found: click.Command = importlib.import_module(module).command
        return found


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ztunnel")
def cli() -> None:
    """An ambient service mesh: a node's agent, proxy, gateway process and BPF loader, and the
    cluster's controller.

    These are the processes of the mesh. To operate it, use `ztctl`.
    """


if __name__ == "__main__":
    sys.exit(cli(prog_name="ztunnel"))
