# SPDX-License-Identifier: Apache-2.0
"""`ztctl install`: installs the mesh into a cluster by server-side apply."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from ztctl import output
from ztctl.cluster import manifests, mesh_config
from ztctl.cluster.manifests import CRD, WORKLOAD_KINDS, Object, is_ours, title
from ztctl.cluster.mesh_config import FieldNote, MeshConfigError, MeshSettings
from ztctl.context import Context, cluster_options, output_option
from ztctl.errors import CommandError
from ztctl.output import Column, Format
from ztunnel.kube.constants import NAMESPACE

if TYPE_CHECKING:
    from ztctl.cluster.api_client import ApiServer

TIMEOUT_S = 300.0  # most of it for pulling the image
_NOTE_COLUMNS = (Column("FIELD", "field"), Column("EFFECT", "effect"), Column("MEANING", "meaning"))

_GATEWAYS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": CRD,
    "metadata": {"name": "gateways.gateway.networking.k8s.io"},
}
_NO_GATEWAY_API = (
    "note: the cluster has no Gateway API, which waypoints require; hint: "
    "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/"
    "download/v1.6.3/standard-install.yaml"
)


@click.command()
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="An IstioOperator document with mesh settings; - for standard input.",
)
@click.option("--image", help="Image of all containers, built from deploy/Containerfile.")
@click.option(
    "--proxy-image",
    help="Image of gateways and waypoints, built from deploy/Containerfile.envoy.",
)
@click.option(
    "--gateway-certificates/--no-gateway-certificates",
    default=True,
    show_default=True,
    help="Let the controller read the Secrets that ingress gateways refer to.",
)
@click.option(
    "--certificate-namespace",
    "certificate_namespaces",
    multiple=True,
    metavar="NAMESPACE",
    help="Namespace in which it may read them. Repeatable.  [default: all]",
)
@click.option(
    "--host-port-namespace",
    "host_port_namespaces",
    multiple=True,
    metavar="NAMESPACE",
    help="Namespace whose ingress gateways may bind ports of nodes. Repeatable.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Change nothing: the API server only validates. With -o yaml or json, only print.",
)
@click.option("--force", is_flag=True, help="Take ownership of fields of other field managers.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait until all workloads are ready."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=TIMEOUT_S,
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
    proxy_image: str | None,
    gateway_certificates: bool,
    certificate_namespaces: tuple[str, ...],
    host_port_namespaces: tuple[str, ...],
    dry_run: bool,
    force: bool,
    wait: bool,
    timeout_s: float,
) -> None:
    """Install the mesh into a cluster, or update an installation. Safe to repeat.

    Namespaced objects are created in the namespace ztunnel-system. `kubectl apply -k deploy`
    applies the same objects. To enroll pods, label them or their namespace with
    istio.io/dataplane-mode=ambient.

    \b
    Examples:
      ztctl install
      ztctl install -f mesh.yaml --dry-run
      ztctl install -f mesh.yaml --dry-run -o yaml > mesh-objects.yaml
    """
    is_table = context.output_format is Format.TABLE
    settings, notes = _read_settings(file)
    if notes:
        rows = list(mesh_config.note_rows(notes))
        click.echo(output.render_table(_NOTE_COLUMNS, rows), err=not is_table)
    certificates = (certificate_namespaces or None) if gateway_certificates else ()
    gateways = manifests.GatewayOptions(certificates, host_port_namespaces)
    objects = manifests.load_configured(settings, image, proxy_image, gateways)
    if not is_table:
        click.echo(_render_objects(objects, context.output_format))
        if dry_run:
            return
    with closing(context.api_server()) as api_server:
        _apply(context, api_server, objects, dry_run=dry_run, force=force)
        if api_server.get(_GATEWAYS) is None:
            _report(context, _NO_GATEWAY_API)
        if wait and not dry_run:
            _wait(context, api_server, objects, timeout_s)


def _read_settings(file: Path | None) -> tuple[MeshSettings, list[FieldNote]]:
    if file is None:
        return MeshSettings(), []
    try:
        with click.open_file(str(file), encoding="utf-8") as text:
            return mesh_config.read(yaml.safe_load(text))
    except (MeshConfigError, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {error}") from error


class _NoAliasDumper(yaml.SafeDumper):
    """Writes repeated values in full: aliases make manifests hard to read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _render_objects(objects: list[Object], output_format: Format) -> str:
    if output_format is Format.YAML:
        return yaml.dump_all(objects, Dumper=_NoAliasDumper, sort_keys=False).rstrip("\n")
    objects_list = {"apiVersion": "v1", "kind": "List", "items": objects}
    return output.render_data(objects_list, output_format)


def _apply(
    context: Context,
    api_server: ApiServer,
    objects: list[Object],
    *,
    dry_run: bool,
    force: bool,
) -> None:
    new_namespaces = _missing_namespaces(api_server, objects) if dry_run else set()
    width = max(len(title(obj)) for obj in objects)
    for obj in objects:
        if obj["metadata"].get("namespace") in new_namespaces:
            result = "not validated: its namespace does not exist yet (dry run)"
        elif _is_foreign_crd(api_server, obj):
            result = "skipped: exists and is not managed by ztctl"
        else:
            result = api_server.apply(obj, dry_run=dry_run, force=force)
            result += " (dry run)" if dry_run else ""
        _report(context, f"{title(obj):<{width}}  {result}")


def _is_foreign_crd(api_server: ApiServer, obj: Object) -> bool:
    """Whether Istio has installed the CustomResourceDefinition, which serves as well."""
    if obj["kind"] != CRD:
        return False
    existing = api_server.get(obj)
    return existing is not None and not is_ours(existing)


def _missing_namespaces(api_server: ApiServer, objects: list[Object]) -> set[str]:
    namespaces = [obj for obj in objects if obj["kind"] == "Namespace"]
    return {obj["metadata"]["name"] for obj in namespaces if api_server.get(obj) is None}


def _wait(context: Context, api_server: ApiServer, objects: list[Object], timeout_s: float) -> None:
    """Wait for all workloads; `timeout_s` is for all of them together."""
    deadline, unready = time.monotonic() + timeout_s, []
    for obj in objects:
        if obj["kind"] in WORKLOAD_KINDS and not api_server.wait_for_rollout(
            obj, deadline - time.monotonic(), lambda text: _report(context, text)
        ):
            unready.append(title(obj))
    if unready:
        raise CommandError(
            f"not ready after {timeout_s:.0f} s: {', '.join(unready)}; hint: see "
            f"`kubectl -n {NAMESPACE} get pods` and `kubectl -n {NAMESPACE} get events`"
        )
    _report(context, "mesh ready; to enroll a namespace, label it: istio.io/dataplane-mode=ambient")


def _report(context: Context, text: str) -> None:
    """Print progress, to standard error if standard output has the objects."""
    click.echo(text, err=context.output_format is not Format.TABLE)
