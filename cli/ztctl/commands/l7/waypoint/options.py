# SPDX-License-Identifier: Apache-2.0
"""Options that the waypoint commands share; names and defaults are istioctl's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ztctl.commands.l7.waypoint.gateway import DEFAULT_NAME
from ztctl.context import lab_or_cluster_options
from ztunnel.kube.objects.waypoints import Traffic
from ztunnel.l7.names import WAYPOINT_CLASSES

Command = TypeVar("Command", bound=Callable[..., Any])


def namespace_option(command: Command) -> Command:
    """Add `-n, --namespace`, and the options that select a cluster or lab."""
    return lab_or_cluster_options(
        click.option(
            "-n",
            "--namespace",
            default="default",
            show_default=True,
            help="Namespace of the waypoint.",
        )(command)
    )


def all_namespaces_option(command: Command) -> Command:
    """Add `-A, --all-namespaces`."""
    return click.option("-A", "--all-namespaces", is_flag=True, help="In all namespaces.")(command)


def manifest_options(command: Command) -> Command:
    """Add `--name`, `--for` and `--class`."""
    options = (
        click.option(
            "--name", default=DEFAULT_NAME, show_default=True, help="Name of the waypoint."
        ),
        click.option(
            "--for",
            "traffic",
            type=click.Choice([each.value for each in Traffic]),
            help="Traffic that passes the waypoint.  [default: service]",
        ),
        click.option(
            "--class",
            "class_name",
            type=click.Choice(WAYPOINT_CLASSES),
            default=WAYPOINT_CLASSES[0],
            show_default=True,
            help="GatewayClass. Use ztunnel-waypoint in a cluster where istiod runs.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
