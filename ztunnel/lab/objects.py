# SPDX-License-Identifier: Apache-2.0
"""The lab's API server: a directory of Kubernetes objects, with one file for each.

The agents watch this directory. Each lab command reads it, makes a plan, and writes the result.
Files are replaced atomically. Kinds that the lab does not implement, such as policies, are stored
unchanged. Secrets are in a directory of their own that only root can read and no agent watches.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ztunnel.lab.errors import LabError

Object = dict[str, Any]

SECRET = "Secret"
SERVICE_LABEL = "kubernetes.io/service-name"  # of EndpointSlices
CLUSTER_SCOPED = frozenset(
    {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "GatewayClass",
        "IngressClass",
        "Namespace",
        "Node",
        "PersistentVolume",
        "PriorityClass",
        "StorageClass",
    }
)


class Key(NamedTuple):
    """Identifies an object; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        namespace = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {namespace}{self.name}"


Objects = Mapping[Key, Object]


def key_of(obj: Object) -> Key:
    """The key of an object. The namespace of a namespaced object defaults to `default`."""
    kind, metadata = obj["kind"], obj["metadata"]
    namespace = "" if kind in CLUSTER_SCOPED else metadata.get("namespace") or "default"
    return Key(kind, namespace, metadata["name"])


def of_kind(objects: Objects, kind: str) -> Iterator[Object]:
    """All objects of a kind, sorted by namespace and name."""
    return (objects[key] for key in sorted(objects) if key.kind == kind)


def read_manifests(sources: Iterable[Path]) -> list[Object]:
    """Every object in the given files and directories (*.yaml, *.yml, *.json; not recursive)."""
    return [obj for source in sources for path in _files(source) for obj in parse_manifest(path)]


def parse_manifest(path: Path) -> Iterator[Object]:
    """The objects in a manifest. Lists are flattened, and namespaces are set."""
    try:
        documents = list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise LabError(f"cannot read manifest {path}: {error}") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise LabError(f"{path}: expected a mapping, found {type(document).__name__}")
        is_list = document.get("kind") == "List"
        for obj in document.get("items") or [] if is_list else [document]:
            yield _validated(obj, str(path))


def _validated(obj: Any, source: str) -> Object:
    has_metadata = isinstance(obj, dict) and isinstance(obj.get("metadata"), dict)
    if not has_metadata or not all(
        (obj.get("apiVersion"), obj.get("kind"), obj["metadata"].get("name"))
    ):
        raise LabError(f"{source}: an object must have apiVersion, kind and metadata.name")
    if obj["kind"] not in CLUSTER_SCOPED:
        obj["metadata"].setdefault("namespace", "default")
    validated: Object = obj
    return validated


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(path for path in source.iterdir() if path.suffix in {".yaml", ".yml", ".json"})
    if not files:
        raise LabError(f"no *.yaml, *.yml or *.json file in {source}")
    return files


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file atomically: readers see either the old text or the new, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a process with this pid that crashed
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w") as file:
        file.write(text)
    temporary.rename(path)


class ObjectStore:
    """The directory of objects. Writers hold the lab's lock; readers need none.

    `secrets`: the directory of the Secrets.
    """

    def __init__(self, directory: Path, secrets: Path) -> None:
        self.directory = directory
        self._secrets = secrets

    def load(self) -> dict[Key, Object]:
        """All objects."""
        objects = {}
        for directory in (self.directory, self._secrets):
            for path in directory.glob("*.yaml"):
                for obj in parse_manifest(path):
                    objects[key_of(obj)] = obj
        return objects

    def put(self, obj: Object) -> bool:
        """Write an object, unless it is unchanged. Returns whether it was written."""
        path, is_secret = self._path(key_of(obj)), obj["kind"] == SECRET
        text = yaml.dump(obj, Dumper=_Dumper, sort_keys=False, width=100)
        try:
            if path.read_text() == text:
                return False
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700 if is_secret else 0o755, parents=True, exist_ok=True)
        write_atomically(path, text, 0o600 if is_secret else 0o644)
        return True

    def remove(self, key: Key) -> bool:
        """Remove an object. Returns whether it existed."""
        path = self._path(key)
        existed = path.exists()
        path.unlink(missing_ok=True)
        return existed

    def _path(self, key: Key) -> Path:
        directory = self._secrets if key.kind == SECRET else self.directory
        return directory / f"{key.kind.lower()}.{key.namespace or '_'}.{key.name}.yaml"


class _Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values in full: users read these files."""
        return True
