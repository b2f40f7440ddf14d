# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab exec`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from ztctl.commands.lab.options import lab_errors, name_option, namespace_option
from ztunnel.lab import Lab


@click.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@name_option
@namespace_option
@click.option("-c", "--container", help="Container of the pod.  [default: the first]")
@click.option("--node", help="Run in this node's network namespace instead of a pod.")
@click.option("--external", is_flag=True, help="Run on a machine outside the cluster.")
@click.option("--privileged", is_flag=True, help="Run with all capabilities.")
@click.argument("words", nargs=-1, required=True, metavar="[POD] [--] COMMAND...")
def exec_(
    *,
    name: str,
    namespace: str,
    container: str | None,
    node: str | None,
    external: bool,
    privileged: bool,
    words: tuple[str, ...],
) -> None:
    """Run a command in a pod, and exit with its exit code.

    The command runs with the environment and capabilities of the container. POD is NAME or
    deploy/NAME.

    \b
    Examples:
      ztctl lab exec client -- curl -s http://my-app
      ztctl lab exec -n other deploy/web sh
      ztctl lab exec --node node1 -- ip route
      ztctl lab exec --external -- curl -s http://172.30.0.1:30080
    """
    with lab_errors():
        lab = Lab(name)
        if external:
            argv, env = lab.external_argv(_command(words)), dict(os.environ)
        elif node:
            argv, env = lab.node_argv(node, _command(words)), dict(os.environ)
        else:
            argv, env = lab.exec_argv(
                words[0],
                _command(words[1:]),
                namespace=namespace,
                container=container,
                privileged=privileged,
            )
    os.execvpe(argv[0], argv, env)


def _command(words: Sequence[str]) -> list[str]:
    """The command without the `--` that may precede it."""
    command = list(words[1:] if words[:1] == ("--",) else words)
    if not command:
        raise click.UsageError("missing COMMAND, for example: ztctl lab exec client -- ip address")
    return command
