# SPDX-License-Identifier: Apache-2.0
"""A target: one node's installation, as the directories through which a command reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

RUN_DIR = Path("/run/ztunnel")
PIN_DIR = Path("/sys/fs/bpf/ztunnel")
LAB_STATE_DIR = Path("/run/ztunnel-lab")


class TransportKind(StrEnum):
    """How the agents of a cluster are reached. AUTO: port-forward, then exec if that fails."""

    AUTO = "auto"
    EXEC = "exec"
    PORT_FORWARD = "port-forward"


@dataclass(frozen=True)
class Target:
    """The directories of one node.

    `lab` is the lab's name, empty for other nodes. `pod` is the agent's pod, empty for nodes that
    are not reached through a cluster's API server.
    """

    node: str
    run_dir: Path
    pin_dir: Path
    lab: str = ""
    pod: str = ""
