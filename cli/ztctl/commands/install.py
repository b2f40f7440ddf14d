# SPDX-License-Identifier: Apache-2.0
"""`ztctl install`: the mesh into a cluster, by server-side apply, and wait until it is ready."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from ztctl import manifests, mesh_config, output
from ztctl.context import Context, cluster_options, output_option
from ztctl.errors import CommandError
from ztctl.manifests import CRD, WORKLOADS, Object, is_ours, title
from ztctl.mesh_config import MeshConfigError, MeshSettings, Note
from ztctl.output import Column, Format
from ztunnel.kube.constants import NAMESPACE

if TYPE_CHECKING:
    from ztctl.cluster import Cluster

TIMEOUT = 300.0  # seconds; pulling an image is most of it
NOTES = (Column("FIELD", "field"), Column("EFFECT", "effect"), Column("MEANS", "meaning"))


@click.command()
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="An IstioOperator document with the mesh's settings; - is standard input.",
)
@click.option("--image", help="Image of all containers, as deploy/Containerfile makes it.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Change nothing: let the API server check every object; with -o yaml or json just print.",
)
@click.option("--force", is_flag=True, help="Take over fields that somebody else set.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until all is ready.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=TIMEOUT,
    show_default=True,
    help="Seconds to wait.",
)
@cluster_options
@output_option
@click.pass_obj
def install(
    context: Context,
    *,
    file: Path | None,
    image: str | None,
    dry_run: bool,
    force: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Install the mesh into a cluster, or bring an installation up to date. Safe to repeat.

    Everything goes into the namespace ztunnel-system; `deploy/` has the same as plain YAML for
    kubectl. Pods join by the label istio.io/dataplane-mode=ambient on them or their namespace.

    \b
    Examples:
      ztctl install
      ztctl install -f mesh.yaml --dry-run
      ztctl install -f mesh.yaml --dry-run -o yaml > mesh-objects.yaml
    """
    settings, notes = _settings(file)
    if notes:
        click.echo(
            output.table(NOTES, mesh_config.rows(notes)), err=context.form is not Format.TABLE
        )
    objects = manifests.configured(settings, image)
    if context.form is not Format.TABLE:
        click.echo(_printed(objects, context.form))
        if dry_run:
            return
    with closing(context.cluster()) as cluster:
        _apply(context, cluster, objects, dry_run=dry_run, force=force)
        if wait and not dry_run:
            _wait(context, cluster, objects, timeout)


def _settings(file: Path | None) -> tuple[MeshSettings, list[Note]]:
    if file is None:
        return MeshSettings(), []
    try:
        with click.open_file(str(file), encoding="utf-8") as text:
            return mesh_config.read(yaml.safe_load(text))
    except (MeshConfigError, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {error}") from error


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice: an alias saves a line and costs the reader a search."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _printed(objects: list[Object], form: Format) -> str:
    if form is Format.YAML:
        return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False).rstrip("\n")
    return output.data({"apiVersion": "v1", "kind": "List", "items": objects}, form)


def _apply(
    context: Context, cluster: Cluster, objects: list[Object], *, dry_run: bool, force: bool
) -> None:
    new = _missing_namespaces(cluster, objects) if dry_run else set()
    width = max(len(title(obj)) for obj in objects)
    for obj in objects:
        if obj["metadata"].get("namespace") in new:
            result = "would be created, unchecked: so would its namespace"
        elif _is_anothers(cluster, obj):
            result = "kept: it is there already, not ours"
        else:
            result = cluster.apply(obj, dry_run=dry_run, force=force)
            result += " (dry run)" if dry_run else ""
        _say(context, f"{title(obj):<{width}}  {result}")


def _is_anothers(cluster: Cluster, obj: Object) -> bool:
    """Istio's own definitions of its kinds serve as well, and are not replaced."""
    if obj["kind"] != CRD:
        return False
    there = cluster.get(obj)
    return there is not None and not is_ours(there)


def _missing_namespaces(cluster: Cluster, objects: list[Object]) -> set[str]:
    spaces = [obj for obj in objects if obj["kind"] == "Namespace"]
    return {obj["metadata"]["name"] for obj in spaces if cluster.get(obj) is None}


def _wait(context: Context, cluster: Cluster, objects: list[Object], timeout: float) -> None:
    """For all workloads together, `timeout` seconds."""
    end, late = time.monotonic() + timeout, []
    for obj in objects:
        if obj["kind"] in WORKLOADS and not cluster.wait_for(
            obj, end - time.monotonic(), lambda text: _say(context, text)
        ):
            late.append(title(obj))
    if late:
        raise CommandError(
            f"not ready in {timeout:.0f} s: {', '.join(late)}; "
            f"see: kubectl -n {NAMESPACE} get pods, kubectl -n {NAMESPACE} get events"
        )
    _say(context, "the mesh is ready; label a namespace: istio.io/dataplane-mode=ambient")


def _say(context: Context, text: str) -> None:
    """Progress is for people: beside the objects if those are printed."""
    click.echo(text, err=context.form is not Format.TABLE)
