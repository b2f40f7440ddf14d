# SPDX-License-Identifier: Apache-2.0
"""A lab's saved settings, and the lock that serializes the commands that change it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ztunnel.lab.errors import LabError
from ztunnel.lab.names import STATE_ROOT, LabNames
from ztunnel.lab.network.addresses import MAX_NODES
from ztunnel.lab.objects import write_atomically

DEFAULT_NODES = 2


@dataclass
class LabSettings:
    """The settings of a lab, which later commands reuse.

    `nodes`: their number. `mesh`: run agents and proxies. `agent_options`, `proxy_options`: more
    arguments of their command lines. `manifests_applied`: the first manifests were applied.
    """

    nodes: int = DEFAULT_NODES
    mesh: bool = True
    agent_options: tuple[str, ...] = ()
    proxy_options: tuple[str, ...] = ()
    manifests_applied: bool = False

    def set_nodes(self, names: LabNames, nodes: int) -> None:
        """Set the number of nodes. Raises LabError if it is out of range or below a saved one."""
        if not 1 <= nodes <= MAX_NODES:
            raise LabError(f"{nodes} nodes are not supported; hint: a lab has 1 to {MAX_NODES}")
        if names.settings.exists() and nodes < self.nodes:
            raise LabError(
                f"lab {names.name!r} has {self.nodes} nodes and cannot shrink to {nodes}; "
                f"hint: ztctl lab down --name {names.name}, then up"
            )
        self.nodes = nodes

    def save(self, names: LabNames) -> None:
        """Save the settings. The caller holds the lock."""
        write_atomically(names.settings, json.dumps(asdict(self), indent=2) + "\n")


def load_settings(names: LabNames) -> LabSettings:
    """The saved settings, or the defaults."""
    try:
        saved: dict[str, Any] = json.loads(names.settings.read_text())
    except FileNotFoundError:
        return LabSettings()
    for field in ("agent_options", "proxy_options"):
        saved[field] = tuple(saved[field])
    return LabSettings(**saved)


@contextmanager
def locked(names: LabNames) -> Iterator[None]:
    """Hold the lab's lock.

    The umask is fixed meanwhile, because the unprivileged proxy must reach its run directory.
    """
    umask = os.umask(0o022)
    try:
        names.objects.mkdir(parents=True, exist_ok=True)
        with (STATE_ROOT / f".{names.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    finally:
        os.umask(umask)
