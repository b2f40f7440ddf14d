# SPDX-License-Identifier: Apache-2.0
"""Volumes of pods from Secrets and ConfigMaps, updated while the pod runs.

    <state>/pods/<uid>/volumes/<name>/..<time>/tls.crt
                                     /..data ─▶ ..<time>      replaced atomically by a rename
                                     /tls.crt ─▶ ..data/tls.crt

This is the layout of the kubelet, which programs in pods depend on to notice changes. A mount point
that does not exist on the machine is added by an overlay of its nearest existing parent directory,
in the pod's mount namespace only.
"""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ztunnel.lab.objects import Key, Object, Objects

_DATA = "..data"
_SOURCES = {"secret": ("Secret", "secretName"), "configMap": ("ConfigMap", "name")}
_UNSUPPORTED_OPTIONS = ("items",)
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600  # whatever the manifest has: only the pod's user reads them


class VolumeError(LookupError):
    """An object that a volume needs does not exist."""


class Mount(NamedTuple):
    """A volume of a pod, by name, and the absolute path of its mount point."""

    volume: str
    path: Path


def problems(pod: Object) -> Iterator[str]:
    """The volumes and mounts of a pod that the lab does not support."""
    known = set()
    for volume in pod["spec"].get("volumes") or []:
        source = next((kind for kind in _SOURCES if kind in volume), None)
        if source is None:
            yield f"volume {volume['name']!r} is ignored: only secret and configMap are supported"
            continue
        known.add(volume["name"])
        for option in _UNSUPPORTED_OPTIONS:
            if option in volume[source]:
                yield f"volume {volume['name']!r}: {option} is ignored: not supported by the lab"
    for mount in _volume_mounts(pod):
        if mount["name"] in known and mount.get("subPath"):
            yield f"mount of volume {mount['name']!r} is ignored: subPath is not supported"


def mounts(pod: Object) -> list[Mount]:
    """The supported mounts of all containers, which share the pod's files. No duplicates."""
    names = {
        volume["name"]
        for volume in pod["spec"].get("volumes") or []
        if any(kind in volume for kind in _SOURCES)
    }
    found = [
        Mount(mount["name"], Path(mount["mountPath"]))
        for mount in _volume_mounts(pod)
        if mount["name"] in names and not mount.get("subPath")
    ]
    return list(dict.fromkeys(found))


def directory_of(pod_directory: Path, volume: str) -> Path:
    """The directory on the machine that has the files of a volume."""
    return pod_directory / "volumes" / volume


def sync(pod_directory: Path, pod: Object, objects: Objects) -> None:
    """Write the files of all volumes. Unchanged ones are not touched. Raises VolumeError."""
    user = _user(pod)
    for volume in pod["spec"].get("volumes") or []:
        for source, (kind, name_field) in _SOURCES.items():
            if source in volume:
                name = volume[source].get(name_field, "")
                obj = objects.get(Key(kind, pod["metadata"]["namespace"], name))
                if obj is None and not volume[source].get("optional"):
                    raise VolumeError(
                        f"{kind} {name!r} of volume {volume['name']!r} does not exist; hint: apply "
                        f"the {kind}"
                    )
                _write(directory_of(pod_directory, volume["name"]), _content(obj), user)


def missing_parents(pod_directory: Path, paths: list[Path]) -> list[tuple[Path, Path]]:
    """Pairs of an existing directory and one with the missing mount points below it.

    The second ones are created in `pod_directory`.
    """
    skeletons: dict[Path, Path] = {}
    for path in paths:
        parent = next(parent for parent in (path, *path.parents) if parent.is_dir())
        if parent != path:
            skeleton = pod_directory / "skeleton" / str(parent).strip("/").replace("/", "-")
            (skeleton / path.relative_to(parent)).mkdir(parents=True, exist_ok=True)
            skeletons[parent] = skeleton
    return list(skeletons.items())


def _volume_mounts(pod: Object) -> Iterator[dict[str, Any]]:
    for container in pod["spec"]["containers"]:
        yield from container.get("volumeMounts") or []


def _user(pod: Object) -> int:
    """The user of the pod's first container."""
    contexts = (pod["spec"]["containers"][0], pod["spec"])
    for context in contexts:
        user = (context.get("securityContext") or {}).get("runAsUser")
        if user is not None:
            return int(user)
    return 0


def _content(obj: Object | None) -> dict[str, bytes]:
    if obj is None:
        return {}
    data = obj.get("data") or {}
    if obj["kind"] == "Secret":
        return {name: base64.b64decode(value) for name, value in data.items()}
    return {name: str(value).encode() for name, value in data.items()}


def _write(directory: Path, content: Mapping[str, bytes], user: int) -> None:
    if _current(directory) == content:
        return
    directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    os.chown(directory, user, user)
    old = directory / _DATA
    version = directory / f"..{time.time_ns()}"
    version.mkdir(mode=_DIRECTORY_MODE)
    for name, data in content.items():
        descriptor = os.open(version / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chown(version / name, user, user)
    os.chown(version, user, user)
    replaced = directory / os.readlink(old) if old.is_symlink() else None
    temporary = directory / f"{_DATA}_tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(version.name)
    temporary.rename(old)
    _link_names(directory, content)
    if replaced is not None:
        shutil.rmtree(replaced)


def _current(directory: Path) -> dict[str, bytes] | None:
    """The content of a volume; None if it was not written yet."""
    if not (directory / _DATA).is_symlink():
        return None
    return {path.name: path.read_bytes() for path in (directory / _DATA).iterdir()}


def _link_names(directory: Path, content: Mapping[str, bytes]) -> None:
    for name in content:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"{_DATA}/{name}")
    for path in directory.iterdir():
        if not path.name.startswith("..") and path.name not in content:
            path.unlink()
