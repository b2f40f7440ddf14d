# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab up`."""

from __future__ import annotations

from pathlib import Path

import click

from ztctl.commands.lab.options import (
    DEFAULT_NAME,
    exit_with,
    files_option,
    lab_errors,
    name_option,
    print_progress,
    wait_options,
)
from ztunnel.lab import Lab


@click.command()
@files_option(required=False)
@name_option
@click.option("--nodes", type=int, help="Number of nodes.  [default: 2]")
@click.option(
    "--outbound-traffic-policy",
    type=click.Choice(["ALLOW_ANY", "REGISTRY_ONLY"]),
    help="As the agent's option, for a new lab.  [default: ALLOW_ANY]",
)
@wait_options
@click.option("--no-mesh", is_flag=True, hidden=True, help="Start no agents and no proxies.")
def up(
    *,
    files: tuple[Path, ...],
    name: str,
    nodes: int | None,
    outbound_traffic_policy: str | None,
    wait: bool,
    timeout_s: float,
    no_mesh: bool,
) -> None:
    """Create a lab, or repair it. Safe to repeat.

    Without -f, a new lab runs the demo: the enrolled namespace default, a deployment my-app with
    its service, and a pod client to run commands in.

    \b
    Examples:
      ztctl lab up
      ztctl lab up -f manifests/ -f extra.yaml --nodes 3
      ztctl lab up --name second
    """
    with lab_errors():
        mesh = False if no_mesh else None
        options = None
        if outbound_traffic_policy:
            options = ("--outbound-traffic-policy", outbound_traffic_policy)
        lab = Lab(name, nodes=nodes, mesh=mesh, agent_options=options, progress=print_progress)
        problems = lab.up(list(files) or None, wait=wait, timeout=timeout_s)
        name_hint = "" if name == DEFAULT_NAME else f" --name {name}"
        print_progress(f"lab {name} is up; see: ztctl lab status{name_hint}")
        exit_with(problems)
