# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy test`: the decision on a connection or a request, without sending it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ztctl import output
from ztctl.commands.policy.query import query_any_agent, render_decision
from ztctl.context import Context, output_option, target_options
from ztctl.errors import EXIT_FAILED, CommandError, QuestionError
from ztctl.output import Format, Row
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN

_SCHEMES = ("http://", "https://")


@click.command()
@click.option(
    "--from", "source", required=True, metavar="POD|ID|IP", help="Source of the connection."
)
@click.option("--to", "destination", required=True, metavar="POD:PORT|URL", help="Destination.")
@click.option("-6", "--ipv6", is_flag=True, help="Use the pods' IPv6 addresses.")
@click.option("--method", default="GET", show_default=True, help="Method of the request.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Header; repeatable."
)
@click.option(
    "--claims", metavar="JSON", help="Claims of a token with a valid signature, in `authorization`."
)
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    metavar="FILE",
    help="Manifest file, directory, or - for standard input, instead of an agent; repeatable.",
)
@click.option("-n", "--namespace", default="default", show_default=True, help="Of the URL's host.")
@click.option(
    "--mesh-config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with Istio's MeshConfig: the external authorizers.",
)
@click.option("--trust-domain", default=DEFAULT_TRUST_DOMAIN, show_default=True, help="With -f.")
@click.option(
    "--root-namespace", default=DEFAULT_ROOT_NAMESPACE, show_default=True, help="With -f."
)
@target_options
@output_option
@click.pass_context
def test(
    ctx: click.Context,
    *,
    source: str,
    destination: str,
    ipv6: bool,
    method: str,
    headers: tuple[str, ...],
    claims: str | None,
    files: tuple[str, ...],
    namespace: str,
    mesh_config: Path | None,
    trust_domain: str,
    root_namespace: str,
) -> None:
    """Show the decision on a connection or a request, and the rule it follows from.

    No traffic is sent. With --to POD:PORT, the decision is that of the destination's node on a
    connection. With --to http://SERVICE/PATH, it is that of the service's waypoint on a request.
    POD is NAME, NAMESPACE/NAME, the name of the pod's owner, or an address; the source may be a
    SPIFFE ID. Exits with 0 if it would be allowed, 1 if it would be denied, 2 for an error, 3 if
    no agent is reachable.

    \b
    Examples:
      ztctl policy test --from client --to my-app:80
      ztctl policy test --from client --to http://my-app/admin --method POST -H 'x-team: blue'
      ztctl policy test --from spiffe://cluster.local/ns/shop/sa/web -f manifests/ \\
        --to http://cart.shop/ --claims '{"iss": "https://issuer.example", "sub": "alice"}'
    """
    context: Context = ctx.obj
    query = {"method": method, "headers": headers, "claims": claims, "namespace": namespace}
    settings = Settings(trust_domain=trust_domain, root_namespace=root_namespace)
    try:
        if destination.startswith(_SCHEMES):
            loaded = _load(context, files, settings, mesh_config)
            decision, text = _request(loaded, source, destination, mesh_config, query)
        elif files:
            raise CommandError("-f needs --to http://SERVICE/PATH; hint: leave out -f")
        else:
            decision, text = _connection(context, source, destination, ipv6=ipv6)
    except CommandError as error:
        if error.exit_code != EXIT_FAILED:
            raise
        raise QuestionError(error.message) from error  # EXIT_FAILED stands for a denial
    is_table = context.output_format is Format.TABLE
    click.echo(text if is_table else output.render_data(decision, context.output_format))
    if not decision["allowed"]:
        ctx.exit(EXIT_FAILED)


def _connection(context: Context, source: str, destination: str, *, ipv6: bool) -> tuple[Row, str]:
    query = {"from": source, "to": destination, **({"family": "6"} if ipv6 else {})}
    decision = query_any_agent(context, "/v1/policy/test", **query)
    return decision, render_decision(decision)


def _load(
    context: Context, files: tuple[str, ...], settings: Settings, mesh_config: Path | None
) -> Inputs:
    from ztctl.l7_inputs import load_inputs  # noqa: PLC0415  only requests need it
    from ztctl.manifest_inputs import load_files, load_mesh_config  # noqa: PLC0415

    inputs = load_files(files, settings).inputs if files else load_inputs(context)
    config = replace(inputs.settings, mesh_config=load_mesh_config(mesh_config))
    return Inputs(inputs.store, inputs.mesh, config)


def _request(
    inputs: Inputs, source: str, url: str, mesh_config: Path | None, query: dict[str, Any]
) -> tuple[Row, str]:
    from ztctl.commands.policy import http  # noqa: PLC0415  parsers that only requests need

    has_mesh_config = mesh_config is not None
    decision = http.predict(inputs, source, url, has_mesh_config=has_mesh_config, **query)
    return decision, http.render(decision)
