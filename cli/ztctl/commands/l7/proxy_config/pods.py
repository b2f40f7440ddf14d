# SPDX-License-Identifier: Apache-2.0
"""Finds the node of a gateway pod, and requests views of its Envoy from the agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

import click

from ztctl import admin_client
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError
from ztctl.targets import Target

TIMEOUT_S = 15.0
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class GatewayPod:
    """A gateway pod, `namespace/name`, and the node whose agent answers for it."""

    name: str
    target: Target

    def view(self, view: str) -> Any:
        """A view of the admin API. Raises CommandError."""
        query = urlencode({"pod": self.name, "view": view})
        return admin_client.get(self.target.run_dir, f"/v1/gateway?{query}", TIMEOUT_S)

    def set_log_level(self, level: str) -> Any:
        """Change Envoy's log levels; returns all. Raises CommandError."""
        query = urlencode({"pod": self.name, "log": level})
        return admin_client.patch(self.target.run_dir, f"/v1/gateway?{query}", {}, TIMEOUT_S)


def pod_argument(command: Command) -> Command:
    """Add POD, `--namespace`, and the options that select nodes and the output format."""
    command = output_option(target_options(command))
    command = click.option(
        "-n", "--namespace", default="default", show_default=True, help="Namespace of the pod."
    )(command)
    return click.argument("pod", metavar="POD")(command)


def find_pod(context: Context, pod: str, namespace: str) -> GatewayPod:
    """The pod of this name, `name` or `namespace/name`, or the first one of a Gateway of it.

    Raises CommandError.
    """
    wanted = pod if "/" in pod else f"{namespace}/{pod}"
    rows: list[tuple[Target, Any]] = []
    errors = []
    for target in context.targets():
        try:
            found = admin_client.get(target.run_dir, "/v1/gateways", TIMEOUT_S)
        except CommandError as error:
            errors.append(f"{target.node}: {error.message}")
            continue
        rows += [(target, row) for row in found["gateways"]]
    for field in ("workload", "gateway"):
        matching = sorted(
            ((row["workload"], target) for target, row in rows if row[field] == wanted),
            key=lambda pair: str(pair[0]),
        )
        if matching:
            return GatewayPod(*matching[0])
    known = ", ".join(sorted(str(row["workload"]) for _, row in rows)) or "none"
    failed = f"; {'; '.join(errors)}" if errors else ""
    raise CommandError(
        f"no gateway pod or Gateway {wanted} on the selected nodes{failed}; "
        f"hint: the gateway pods are: {known}"
    )
