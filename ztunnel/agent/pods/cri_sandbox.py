# SPDX-License-Identifier: Apache-2.0
"""What a container runtime tells of pods by CRI, and where it listens. `cri_client` asks."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Where runtimes listen: containerd, CRI-O, k3s and RKE2, cri-dockerd.
SOCKETS = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/crio/crio.sock"),
    Path("/run/k3s/containerd/containerd.sock"),
    Path("/run/cri-dockerd.sock"),
)
_NETWORK = "network"  # the OCI runtime specification's name of that namespace


class CriError(Exception):
    """The runtime did not answer, or not as one does."""


@dataclass(frozen=True)
class Sandbox:
    """A pod that runs. `netns` is a path in the runtime's mount namespace, empty when unknown;
    `pid` is of the process that holds the pod's namespaces, 0 when there is none."""

    id: str
    uid: str
    netns: str
    pid: int


class CriRuntime(Protocol):
    """A runtime that can be asked; every method may raise CriError."""

    def sandboxes(self) -> dict[str, str]:
        """Sandbox id by pod uid of all pods that run."""
        ...

    def sandbox(self, uid: str, sandbox_id: str) -> Sandbox:
        """Where a pod is."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


def find_socket(host: Path, candidates: Iterable[Path] = SOCKETS) -> Path:
    """The first socket of a runtime that is there, below `host`. Raises CriError."""
    for candidate in candidates:
        path = host / candidate.relative_to("/")
        try:
            if stat.S_ISSOCK(path.stat().st_mode):
                return path
        except OSError:
            continue
    raise CriError(f"no socket of a container runtime: none of {', '.join(map(str, candidates))}")


def namespace_of(info: str) -> tuple[str, int]:
    """Path of the network namespace and pid, of a runtime's verbose answer."""
    try:
        found = json.loads(info)
        pid = int(found.get("pid") or 0)
        linux = (found.get("runtimeSpec") or {}).get("linux") or {}
        paths = [
            str(space.get("path") or "")
            for space in linux.get("namespaces") or []
            if space.get("type") == _NETWORK
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CriError(f"the runtime's verbose status is not as expected: {error}") from error
    return (paths[0] if paths else ""), max(pid, 0)
