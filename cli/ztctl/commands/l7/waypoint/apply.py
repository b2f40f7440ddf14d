# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint apply`."""

from __future__ import annotations

import click

from ztctl.commands.l7.waypoint.gateway import gateway_manifest, namespace_labels
from ztctl.commands.l7.waypoint.options import manifest_options, namespace_option
from ztctl.commands.l7.waypoint.stores import WaypointStore, waypoint_store
from ztctl.context import Context
from ztctl.errors import CommandError

TIMEOUT_S = 90.0  # as istioctl


@click.command()
@manifest_options
@namespace_option
@click.option(
    "--enroll-namespace",
    is_flag=True,
    help="Label the namespace, so that its services use the waypoint.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace the waypoint that the namespace is labeled with."
)
@click.option("--wait", "-w", is_flag=True, help="Wait until the waypoint is programmed.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=TIMEOUT_S,
    show_default=True,
    help="Seconds to wait.",
)
@click.pass_obj
def apply(
    context: Context,
    *,
    name: str,
    traffic: str | None,
    class_name: str,
    namespace: str,
    enroll_namespace: bool,
    overwrite: bool,
    wait: bool,
    timeout_s: float,
) -> None:
    """Create or update a waypoint. Without a label that selects it, nothing uses it.

    \b
    Examples:
      ztctl waypoint apply -n shop --enroll-namespace --wait
      ztctl waypoint apply --lab lab -n default --name edge --for all
    """
    manifest = gateway_manifest(name, namespace, traffic, class_name)
    with waypoint_store(context) as store:
        found = store.namespace(namespace)
        if found is None:
            raise CommandError(
                f"namespace {namespace} does not exist; hint: kubectl create namespace {namespace}"
            )
        labels = namespace_labels(found, name, overwrite=overwrite) if enroll_namespace else {}
        foreign = store.foreign_controller(class_name)
        if foreign:
            click.echo(
                f"warning: class {class_name} belongs to {foreign}, which runs the waypoint "
                "instead of ztunnel; hint: --class ztunnel-waypoint",
                err=True,
            )
        store.apply(manifest)
        click.echo(f"waypoint {namespace}/{name} applied")
        if wait:
            _wait(store, namespace, name, timeout_s)
        if labels:
            store.label_namespace(namespace, labels)
            text = ", ".join(f"{key}={value}" for key, value in labels.items())
            click.echo(f"namespace {namespace} labeled with {text}")


def _wait(store: WaypointStore, namespace: str, name: str, timeout_s: float) -> None:
    reason = store.wait(namespace, name, timeout_s)
    if reason:
        raise CommandError(
            f"waypoint {namespace}/{name} is not programmed after {timeout_s:.0f} s: {reason}; "
            f"hint: ztctl waypoint status -n {namespace}"
        )
    click.echo(f"waypoint {namespace}/{name} programmed")
