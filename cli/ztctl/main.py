# SPDX-License-Identifier: Apache-2.0
"""The `ztctl` command. Each subcommand is imported only when it is run, so that help is quick."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

import click

from ztctl.context import output_option, target_options


class Entry(NamedTuple):
    """Where a subcommand is, and its line in `ztctl --help`."""

    module: str
    name: str
    summary: str


COMMANDS = {
    "certificate": Entry(
        "ztctl.commands.lists", "certificate", "Workload certificates of the node."
    ),
    "check": Entry("ztctl.commands.check", "check", "Check that this machine can run ztunnel."),
    "completion": Entry(
        "ztctl.commands.completion", "completion", "Print the completion of a shell."
    ),
    "config": Entry(
        "ztctl.commands.config", "config", "All that the agent knows, for a bug report."
    ),
    "connection": Entry(
        "ztctl.commands.lists", "connection", "Connections that the proxy carries."
    ),
    "install": Entry("ztctl.commands.install", "install", "Install the mesh into a cluster."),
    "lab": Entry(
        "ztctl.commands.lab", "lab", "A small cluster on this machine, without Kubernetes."
    ),
    "log": Entry("ztctl.commands.log", "log", "What agent and proxy log, changed while they run."),
    "pod": Entry("ztctl.commands.lists", "pod", "Pods of the node and whether they are captured."),
    "policy": Entry("ztctl.commands.policy", "policy", "Policies, what they decide and why."),
    "redirect": Entry(
        "ztctl.commands.redirect", "redirect", "What the kernel captures, from its maps."
    ),
    "relay": Entry(
        "ztctl.transport.stdio_proxy", "relay", "Carry the admin API; run in agents' pods."
    ),
    "service": Entry("ztctl.commands.lists", "service", "Services as the agent knows them."),
    "status": Entry("ztctl.commands.lists", "status", "How the agent and its proxy are."),
    "uninstall": Entry(
        "ztctl.commands.uninstall", "uninstall", "Remove it from this machine, or a cluster."
    ),
    "version": Entry("ztctl.commands.version", "version", "Print the version."),
    "workload": Entry(
        "ztctl.commands.lists", "workload", "Workloads of the mesh as the agent knows them."
    ),
}


class LazyGroup(click.Group):
    """Imports a subcommand when it is run; its help line is known before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found: click.Command = getattr(importlib.import_module(entry.module), entry.name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in sorted(COMMANDS)])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
--context or --kubeconfig: a cluster's nodes, --lab: a lab's. Without them and without
directories: this machine's own ztunnel, else the one lab that runs. A cluster's agents
are asked by port-forward, or else by exec; --via names one.
\b
Exit codes:
  0  done
  1  it failed, or a required check did
  2  wrong usage
  3  nothing to look at: no installation, or nobody answers there
""",
)
@target_options
@output_option
def cli() -> None:
    """Look into an ambient mesh node, check a machine, run a lab.

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
