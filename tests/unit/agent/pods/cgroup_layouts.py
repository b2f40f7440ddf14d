# SPDX-License-Identifier: Apache-2.0
"""What was captured from real nodes: layouts/, whose README.md tells the form and where from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "layouts"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.txt"))
CONTAINERS = {"pause", "app"}  # roles of a pod's own processes
HOST_NETWORK = "hostnetwork"  # the pod that has no network namespace of its own
WAITING = "waiting"  # one whose container is never made: CRI-O has no process for it
PODS = {"guaranteed", "burstable", "besteffort", "static", HOST_NETWORK}


@dataclass(frozen=True)
class Process:
    """Of a pod, or of the node: then `pod` is "-". `in_node`: in the node's network namespace."""

    pod: str
    uid: str
    role: str
    in_node: bool
    pid: int
    cgroups: str

    @property
    def cgroup2(self) -> str:
        """Its path in the hierarchy of version 2, without the first slash."""
        return next(line[4:] for line in self.cgroups.splitlines() if line.startswith("0::/"))


@dataclass(frozen=True)
class Told:
    """What the runtime said of a pod: its sandbox, and the `info` of the verbose status, cut.

    `leads_to` is whose the namespace is at the path in it: of the pod, node, another, or none."""

    uid: str
    sandbox: str
    info: str
    leads_to: str


def processes(layout: str) -> list[Process]:
    """All of one node, oldest first."""
    text = (DIRECTORY / f"{layout}.txt").read_text("utf-8")
    found = list(_processes(text))
    return sorted(found, key=lambda one: one.pid)


def _processes(text: str) -> Iterator[Process]:
    for block in text.split("\n[")[1:]:
        head, _, cgroups = block.partition("]\n")
        pod, uid, role, netns, pid = head.split()
        yield Process(pod, uid, role, netns == "node", int(pid), cgroups)


def told(layout: str) -> dict[str, Told]:
    """By pod; empty where no runtime was asked."""
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
