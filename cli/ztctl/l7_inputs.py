# SPDX-License-Identifier: Apache-2.0
"""The mesh and the L7 objects as an agent sees them, for predictions by `ztunnel.l7`."""

from __future__ import annotations

from typing import Any

import msgspec

from ztctl import admin_client
from ztctl.context import Context
from ztctl.errors import CommandError, NotReachableError
from ztunnel.ipc.messages import MeshDelta
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.objects import l7_object
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.state import MeshState


def load_inputs(context: Context) -> Inputs:
    """Return what the first reachable agent has: all agents have the same.

    Raises NotReachableError.
    """
    errors = []
    for target in context.targets():
        try:
            l7, services, workloads = (
                admin_client.get(target.run_dir, f"/v1/{what}")
                for what in ("l7", "services", "workloads")
            )
        except CommandError as error:
            errors.append(f"{target.node}: {error.message}")
            continue
        return make_inputs(l7, services["services"], workloads["workloads"])
    raise NotReachableError("; ".join(errors))


def make_inputs(l7: Any, services: Any, workloads: Any) -> Inputs:
    """Return inputs from responses of the admin API. Objects that are not readable are left out:
    the gateway process uses their last readable version."""
    store, mesh = L7Store(), MeshState()
    for body in l7["objects"]:
        try:
            store.put(l7_object(body))
        except ValueError:
            continue
    mesh.apply(
        MeshDelta(
            revision=0,
            workloads=msgspec.convert(workloads, tuple[Workload, ...]),
            services=msgspec.convert(services, tuple[Service, ...]),
        )
    )
    return Inputs(store, mesh, msgspec.convert(l7["settings"], Settings))
