# SPDX-License-Identifier: Apache-2.0
"""Ingress gateways by name, and the rules of their routes."""

from __future__ import annotations

from ztctl.commands.l7.route.services import entry_row
from ztctl.errors import CommandError
from ztctl.output import Row
from ztunnel.l7.ingress.evaluate import gateway_hosts
from ztunnel.l7.ingress.listeners import is_ingress_gateway
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object

PREFIX = "gateway/"


def find_gateway(inputs: Inputs, name: str) -> L7Object:
    """Return an ingress gateway by name or `namespace/name`. Raises CommandError."""
    found = [
        each
        for each in inputs.store.of_kind("Gateway")
        if name in (each.name, f"{each.namespace}/{each.name}")
        and is_ingress_gateway(inputs.store, each)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(f"{each.namespace}/{each.name}" for each in found))
        raise CommandError(f"{name!r} is ambiguous: {names}; hint: use NAMESPACE/NAME")
    raise CommandError(
        f"no ingress gateway {name!r}; hint: its class is ztunnel, or istio without istiod"
    )


def gateway_rows(inputs: Inputs, gateway: L7Object) -> list[Row]:
    """Return a row per match of the routes of a gateway, in the order of evaluation."""
    rows: list[Row] = []
    for host, entries in gateway_hosts(inputs, gateway):
        listener = host.listener.listener
        base = {"port": listener.port, "listener": listener.name, "host": host.hostname or "*"}
        rows += [{**base, **entry_row(entry)} for entry in entries]
    return rows
