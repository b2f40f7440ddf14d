# SPDX-License-Identifier: Apache-2.0
"""The mesh and the L7 objects of manifest files, as an agent would see them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ztctl.errors import CommandError
from ztunnel.ipc.messages import MeshDelta
from ztunnel.kube.objects.fields import Object, TranslateError, is_mesh_kind
from ztunnel.kube.objects.manifests import SUFFIXES, DocumentError, parse_objects
from ztunnel.kube.objects.virtual_addresses import plan_addresses, with_addresses
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.objects import l7_object
from ztunnel.l7.store import L7Store
from ztunnel.mesh.model import DEFAULT_CLUSTER
from ztunnel.mesh.state import MeshState

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class ManifestInputs:
    """`errors`: what is wrong with objects that are not L7 ones only, by `kind namespace/name`."""

    inputs: Inputs
    errors: dict[str, str]


def load_files(paths: Sequence[str], settings: Settings) -> ManifestInputs:
    """Read files, all files of directories, or `-` for standard input. Raises CommandError."""
    view = ClusterView(
        settings.trust_domain,
        DEFAULT_CLUSTER,
        settings.cluster_domain,
        settings.root_namespace,
    )
    objects = list(_objects(paths))
    with redirect_stdout(io.StringIO()):  # the view logs errors, which are also returned
        for obj in objects:
            view.upsert(obj)
        for obj in _with_addresses(objects, settings.cluster_domain):
            view.upsert(obj)
    state = view.snapshot()
    mesh, store = MeshState(), L7Store()
    mesh.apply(
        MeshDelta(
            revision=0,
            workloads=state.workloads,
            services=state.services,
            policies=state.policies,
        )
    )
    errors = view.errors()
    for body in state.l7:
        try:
            store.put(l7_object(msgspec.json.decode(body.body)))
        except ValueError as error:
            errors[body.key] = str(error)
    return ManifestInputs(Inputs(store, mesh, settings), errors)


def _with_addresses(objects: Sequence[Object], cluster_domain: str) -> Iterator[Object]:
    """The ServiceEntries that the controller gives virtual addresses, with them."""
    entries = [obj for obj in objects if is_mesh_kind(obj) and obj["kind"] == "ServiceEntry"]
    try:
        changed, _ = plan_addresses(entries, cluster_domain, lambda _: False)
    except TranslateError:  # an object without a name, which the view has reported
        return
    yield from (with_addresses(each.obj, each.addresses) for each in changed)


def load_mesh_config(path: Path | None) -> dict[str, Any]:
    """Read Istio's MeshConfig; empty without a file. Raises CommandError."""
    if path is None:
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CommandError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CommandError(f"{path} is no MeshConfig; hint: use the text of its key `mesh`")
    return value


def _objects(paths: Sequence[str]) -> Iterator[Object]:
    for name in paths:
        for title, text in _texts(name):
            try:
                yield from parse_objects(text, title).values()
            except DocumentError as error:
                raise CommandError(str(error)) from error


def _texts(name: str) -> Iterator[tuple[str, str]]:
    if name == STANDARD_INPUT:
        yield "standard input", sys.stdin.read()
        return
    path = Path(name)
    files = [path]
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES)
    for file in files:
        try:
            yield str(file), file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CommandError(f"cannot read {file}: {error}") from error
