# SPDX-License-Identifier: Apache-2.0
"""Reads the recorded layouts of real nodes; layouts/README.md describes format and origin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "layouts"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.txt"))
CONTAINERS = {"pause", "app"}  # roles of a pod's own processes
HOST_NETWORK = "hostnetwork"  # the pod in the network namespace of the node
WAITING = "waiting"  # its container never starts: CRI-O has no process for it
PODS = {"guaranteed", "burstable", "besteffort", "static", HOST_NETWORK}


@dataclass(frozen=True)
class Process:
    """A process; `pod` is "-" for the node's. `in_node`: in the node's network namespace."""

    pod: str
    uid: str
    role: str
    in_node: bool
    pid: int
    cgroups: str

    @property
    def cgroup2(self) -> str:
        """Its path in the cgroup v2 hierarchy, without the leading slash."""
        return next(line[4:] for line in self.cgroups.splitlines() if line.startswith("0::/"))


@dataclass(frozen=True)
class Told:
    """The runtime's data about a pod: its sandbox, and the truncated `info` of its status.

    `leads_to` is the owner of the namespace at its path: the pod, the node, another, or none."""

    uid: str
    sandbox: str
    info: str
    leads_to: str


def processes(layout: str) -> list[Process]:
    """All processes of a node, oldest first."""
    text = (DIRECTORY / f"{layout}.txt").read_text("utf-8")
    found = list(_processes(text))
    return sorted(found, key=lambda one: one.pid)


def _processes(text: str) -> Iterator[Process]:
    for block in text.split("\n[")[1:]:
        head, _, cgroups = block.partition("]\n")
        pod, uid, role, netns, pid = head.split()
        yield Process(pod, uid, role, netns == "node", int(pid), cgroups)


def cri_data(layout: str) -> dict[str, Told]:
    """The runtime's data by pod; empty if none was recorded."""
    path = DIRECTORY / f"{layout}.json"
    if not path.exists():
        return {}
    answers: dict[str, Any] = json.loads(path.read_text("utf-8"))
    names = {one.uid: one.pod for one in processes(layout)}
    return {
        names.get(uid, WAITING): Told(
            uid, answer["sandbox"], json.dumps(answer["info"]), answer["leads_to"]
        )
        for uid, answer in answers.items()
    }
