# SPDX-License-Identifier: Apache-2.0
"""The sandboxes of a container runtime, and its socket. `cri_client` implements `CriRuntime`."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# The sockets of containerd, CRI-O, k3s and RKE2, cri-dockerd, in this order.
SOCKETS = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/crio/crio.sock"),
    Path("/run/k3s/containerd/containerd.sock"),
    Path("/run/cri-dockerd.sock"),
)
_NETWORK = "network"  # the type of the namespace in the OCI runtime specification


class CriError(Exception):
    """The runtime did not respond, or its response is invalid."""


@dataclass(frozen=True)
class Sandbox:
    """A running pod. `netns` is a path in the runtime's mount namespace, empty if it is unknown;
    `pid` is the process that holds the pod's namespaces, 0 if there is none."""

    id: str
    uid: str
    netns: str
    pid: int


class CriRuntime(Protocol):
    """A connection to a runtime; every method may raise CriError."""

    def sandboxes(self) -> dict[str, str]:
        """The sandbox id of each running pod, by pod uid."""
        ...

    def sandbox(self, uid: str, sandbox_id: str) -> Sandbox:
        """The namespace and the process of a sandbox."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def find_socket(host: Path, candidates: Iterable[Path] = SOCKETS) -> Path:
    """The first candidate, below `host`, that is a socket. Raises CriError."""
    for candidate in candidates:
        path = host / candidate.relative_to("/")
        try:
            if stat.S_ISSOCK(path.stat().st_mode):
                return path
        except OSError:
            continue
    raise CriError(f"no container runtime socket found: none of {', '.join(map(str, candidates))}")


def namespace_of(info: str) -> tuple[str, int]:
    """Parse the verbose status: path of the network namespace, and pid. Raises CriError."""
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
        raise CriError(f"unexpected verbose status of the runtime: {error}") from error
    return (paths[0] if paths else ""), max(pid, 0)
