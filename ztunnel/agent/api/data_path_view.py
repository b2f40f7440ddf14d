# SPDX-License-Identifier: Apache-2.0
"""The section `data_path` of the agent's status."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztunnel.datapath.bpf.pins import HeldPins
from ztunnel.telemetry.udp_drop_counters import UdpDropReason


@dataclass(frozen=True, kw_only=True)
class DataPathView:
    """Reads the sources of the section each time it is called."""

    cgroup: Path
    node_known_by: str  # "socket" or "address", see decision 0025
    pin_dir: Path
    pins: HeldPins
    loaded: str  # the loader's summary
    stats: Callable[[], dict[str, int]]
    udp: Callable[[], dict[str, object]]
    udp_authorizer: Callable[[], dict[str, int]]
    udp_drops: Mapping[UdpDropReason, int]
    container_runtime: Callable[[], dict[str, object]]

    def __call__(self) -> dict[str, Any]:
        return {
            "cgroup": str(self.cgroup),
            "node_known_by": self.node_known_by,
            "pin_dir": str(self.pin_dir),
            "pins": {"restored": self.pins.restored, "errors": list(self.pins.errors)},
            "loaded": self.loaded,
            "stats": self.stats(),
            "udp": {
                **self.udp(),
                "authorizer": self.udp_authorizer(),
                "dropped": dict(self.udp_drops),
            },
            "container_runtime": self.container_runtime(),
        }
