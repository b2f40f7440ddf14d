# SPDX-License-Identifier: Apache-2.0
"""The lab's API server: a directory of Kubernetes objects, one file each, replaced atomically.

The agents watch this directory; every lab command reads it, plans, and writes it back. Kinds the
lab does not know (policies, gateways) are stored as they came.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ztunnel.lab.errors import LabError

Object = dict[str, Any]

CLUSTER_SCOPED = frozenset(
    {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "GatewayClass",
        "Namespace",
        "Node",
        "PersistentVolume",
        "PriorityClass",
        "StorageClass",
    }
)


class Key(NamedTuple):
    """What names an object; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {place}{self.name}"


Objects = Mapping[Key, Object]


def key_of(obj: Object) -> Key:
    """The key of an object; a namespaced one without a namespace is in `default`."""
    kind, metadata = obj["kind"], obj["metadata"]
    namespace = "" if kind in CLUSTER_SCOPED else metadata.get("namespace") or "default"
    return Key(kind, namespace, metadata["name"])


def of_kind(objects: Objects, kind: str) -> Iterator[Object]:
    """All objects of a kind, by namespace and name."""
    return (objects[key] for key in sorted(objects) if key.kind == kind)


def read_manifests(sources: Iterable[Path]) -> list[Object]:
    """Every object in the given files and directories (*.yaml, *.yml, *.json; not recursive)."""
    return [obj for source in sources for path in _files(source) for obj in parse(path)]


def parse(path: Path) -> Iterator[Object]:
    """The objects of one manifest, its lists unpacked and `default` filled in."""
    try:
        documents = list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise LabError(f"could not read manifest {path}: {error}") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise LabError(f"{path}: a manifest is a mapping, found {type(document).__name__}")
        is_list = document.get("kind") == "List"
        for obj in document.get("items") or [] if is_list else [document]:
            yield _checked(obj, str(path))


def _checked(obj: Any, where: str) -> Object:
    named = isinstance(obj, dict) and isinstance(obj.get("metadata"), dict)
    if not named or not all((obj.get("apiVersion"), obj.get("kind"), obj["metadata"].get("name"))):
        raise LabError(f"{where}: an object needs apiVersion, kind and metadata.name")
    if obj["kind"] not in CLUSTER_SCOPED:
        obj["metadata"].setdefault("namespace", "default")
    found: Object = obj
    return found


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(path for path in source.iterdir() if path.suffix in {".yaml", ".yml", ".json"})
    if not files:
        raise LabError(f"no *.yaml, *.yml or *.json file in {source}")
    return files


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: readers and crashes meet the old text or the new, no mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.rename(path)


class ObjectStore:
    """The directory itself. One writer at a time (the lab's lock); readers need no lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self) -> dict[Key, Object]:
        """All objects now in the directory."""
        found = {}
        for path in self.directory.glob("*.yaml"):
            for obj in parse(path):
                found[key_of(obj)] = obj
        return found

    def put(self, obj: Object) -> bool:
        """Write an object unless it is there already, as it is; says whether it wrote."""
        path = self._path(key_of(obj))
        text = yaml.dump(obj, Dumper=_Dumper, sort_keys=False, width=100)
        try:
            if path.read_text() == text:
                return False
        except FileNotFoundError:
            self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        return True

    def remove(self, key: Key) -> bool:
        """Remove an object; says whether it was there."""
        path = self._path(key)
        existed = path.exists()
        path.unlink(missing_ok=True)
        return existed

    def _path(self, key: Key) -> Path:
        return self.directory / f"{key.kind.lower()}.{key.namespace or '_'}.{key.name}.yaml"


class _Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """People read these files: repeat a value rather than refer to it."""
        return True
