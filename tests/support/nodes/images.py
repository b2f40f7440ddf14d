# SPDX-License-Identifier: Apache-2.0
"""Builds images without a registry: an OCI archive of one static program."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

BUSYBOX = Path("/bin/busybox")  # busybox-static of Debian: the name selects the applet
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_TYPE = "application/vnd.oci.image"


def archive(
    target: Path,
    name: str | Sequence[str],
    program: Path,
    entrypoint: Sequence[str],
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write an image of a program that runs as `entrypoint`, under one or more names.

    `files`: further files of the image by path, with their permissions.
    Format: the OCI image layout specification, as a tar file.
    """
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = blob("layer.v1.tar", _root(program, entrypoint[0], files or {}))
    config = {
        "architecture": _MACHINES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [layer],
    }
    described = blob("manifest.v1+json", json.dumps(manifest).encode())
    manifests = [
        {**described, "annotations": {"io.containerd.image.name": each}}
        for each in ([name] if isinstance(name, str) else name)
    ]
    index = {"schemaVersion": 2, "manifests": manifests}
    blobs["index.json"] = json.dumps(index).encode()
    blobs["oci-layout"] = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
    with tarfile.open(target, "w") as tar:
        for path, data in blobs.items():
            _add(tar, path, data)


def _root(program: Path, called: str, files: Mapping[str, Path]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        _add(tar, f"bin/{called}", program.read_bytes(), mode=0o755)
        for path, file in files.items():
            _add(tar, path, file.read_bytes(), mode=file.stat().st_mode & 0o777)
    return made.getvalue()


def _add(tar: tarfile.TarFile, path: str, data: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
