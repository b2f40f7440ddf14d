# SPDX-License-Identifier: Apache-2.0
"""The `ztctl` command. Subcommands are imported when they run, so that help is fast."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

import click

from ztctl.context import output_option, target_options


class Entry(NamedTuple):
    """The module of a subcommand, and its line in `ztctl --help`.

    `attribute` is the command's name in the module. Hidden commands are not in the help.
    """

    module: str
    attribute: str
    summary: str
    plural: str = ""
    hidden: bool = False


COMMANDS = {
    "analyze": Entry(
        "ztctl.commands.l7.analyze",
        "analyze",
        "Resources that are ignored or partly honoured.",
    ),
    "certificate": Entry(
        "ztctl.commands.certificate",
        "certificate",
        "Workload certificates of the node.",
        plural="certificates",
    ),
    "check": Entry(
        "ztctl.commands.check", "check", "Check that this machine meets the requirements."
    ),
    "completion": Entry(
        "ztctl.commands.completion", "completion", "Print the completion script of a shell."
    ),
    "config": Entry("ztctl.commands.config", "config", "Dump the agent's state, for bug reports."),
    "connection": Entry(
        "ztctl.commands.connection",
        "connection",
        "Open connections of captured pods.",
        plural="connections",
    ),
    "install": Entry("ztctl.commands.install", "install", "Install the mesh into a cluster."),
    "lab": Entry("ztctl.commands.lab", "lab", "Run a small cluster on this machine."),
    "log": Entry("ztctl.commands.log", "log", "Show and change log levels at run time."),
    "pod": Entry("ztctl.commands.pod", "pod", "Pods of the node, by enrollment.", plural="pods"),
    "policy": Entry(
        "ztctl.commands.policy", "policy", "Policies and their decisions.", plural="policies"
    ),
    "proxy-config": Entry(
        "ztctl.commands.l7.proxy_config",
        "proxy_config",
        "Configuration of the Envoy of a waypoint or gateway.",
    ),
    "redirect": Entry(
        "ztctl.commands.redirect", "redirect", "Captured pods and connections, from the BPF maps."
    ),
    "route": Entry(
        "ztctl.commands.l7.route", "route", "Routes of services, and what they do.", plural="routes"
    ),
    "service": Entry(
        "ztctl.commands.service", "service", "Services of the mesh.", plural="services"
    ),
    "status": Entry("ztctl.commands.status", "status", "Show the state of the agent and proxy."),
    "stdio-proxy": Entry(
        "ztctl.transport.stdio_proxy", "stdio_proxy", "Run in agents' pods.", hidden=True
    ),
    "uninstall": Entry(
        "ztctl.commands.uninstall", "uninstall", "Remove ztunnel from this machine or a cluster."
    ),
    "version": Entry("ztctl.commands.version", "version", "Print the version."),
    "waypoint": Entry(
        "ztctl.commands.l7.waypoint",
        "waypoint",
        "Run waypoints, and show their status.",
        plural="waypoints",
    ),
    "workload": Entry(
        "ztctl.commands.workload", "workload", "Workloads of the mesh.", plural="workloads"
    ),
}
_SINGULARS = {entry.plural: name for name, entry in COMMANDS.items() if entry.plural}


class LazyGroup(click.Group):
    """Imports a subcommand when it runs, and accepts the plurals of nouns."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for name, entry in COMMANDS.items() if not entry.hidden)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(_SINGULARS.get(cmd_name, cmd_name))
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in names])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Nodes:
  --context or --kubeconfig selects a cluster, --lab a lab, --run-dir and --pin-dir one
  node. The default is this machine's installation, otherwise its only lab. The agents of a
  cluster are reached by port-forward, or by exec if that fails; see --transport.
\b
Exit codes:
  0  success
  1  the command failed, or a required check failed
  2  invalid usage
  3  no installation found, or its agent or API server does not respond
""",
)
@target_options
@output_option
def cli() -> None:
    """Inspect an ambient mesh node, check a machine, run a lab.

    \b
    Examples:
      ztctl check
      ztctl lab up
      ztctl redirect list
      ztctl --lab lab --node node1 connection list -o json
      ztctl --context my-cluster --node worker-3 pod list
    """


if __name__ == "__main__":
    sys.exit(cli())
