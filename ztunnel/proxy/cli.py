# SPDX-License-Identifier: Apache-2.0
"""`ztunnel proxy`: the unprivileged data plane of one node, as one or several workers."""

from __future__ import annotations

import importlib.util
import socket
import sys
from functools import partial
from pathlib import Path

import click
import structlog

from ztunnel.proxy.context import new_context
from ztunnel.proxy.process import privileges
from ztunnel.proxy.process.heartbeat import HeartbeatTable
from ztunnel.proxy.process.supervisor import HANG, Supervisor
from ztunnel.proxy.worker import DRAIN_DEADLINE, Worker
from ztunnel.telemetry.logs import LOG_FORMATS, configure_logs

DEFAULT_UID = 1337  # Istio's proxy user


@click.command("proxy")
@click.option("--node", required=True, help="Name of this node, for the logs.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/ztunnel"),
    show_default=True,
    help="Where the agent's socket is.",
)
@click.option(
    "--user",
    type=click.IntRange(min=1),
    default=DEFAULT_UID,
    show_default=True,
    help="Numeric user and group to become, when started as root.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Worker processes that share the pods' listeners.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0, 3600),
    default=DRAIN_DEADLINE,
    show_default=True,
    help="How long live connections may go on after SIGTERM; then they are reset.",
)
@click.option(
    "--otlp",
    metavar="URL",
    default="",
    help="Send a span for each tunnelled connection to this OTLP/HTTP collector, as "
    "http://collector:4318/v1/traces. Needs the extra `tracing`.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Answer a kubelet's probes here, /healthz/live and /healthz/ready; 0: not at all.",
)
@click.option(
    "--hang-seconds",
    type=click.FloatRange(1, 3600),
    default=HANG,
    show_default=True,
    help="A worker whose loop does not turn for so long is killed and replaced.",
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="console", show_default=True)
def command(
    *,
    node: str,
    run_dir: Path,
    user: int,
    workers: int,
    drain_seconds: float,
    otlp: str,
    health_port: int,
    hang_seconds: float,
    log_format: str,
) -> None:
    """Carry the traffic of this node's enrolled pods. Needs no privilege; drops what it has."""
    configure_logs(log_format)
    structlog.contextvars.bind_contextvars(node=node)
    try:
        privileges.drop(user)
    except (privileges.PrivilegeError, OSError) as error:
        raise click.ClickException(f"cannot give up privileges: {error}") from error

    if otlp:
        _require_tracing()

    def work(index: int, beats: HeartbeatTable) -> int:
        context = new_context(workers)
        worker = Worker(context, run_dir, index, drain_seconds, partial(beats.beat, index))
        if not otlp:
            return worker.run()
        from ztunnel.telemetry.tracing import SpanMaker  # noqa: PLC0415  heavy, and an extra

        tracer = context.report.tracer = SpanMaker.to(otlp, node)  # its thread is the worker's own
        try:
            return worker.run()
        finally:
            tracer.close()

    supervisor = Supervisor(workers, work, hang=hang_seconds)
    if health_port:
        supervisor.answer_probes(_listen(health_port))
    sys.exit(supervisor.run())


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
        raise click.ClickException(f"cannot listen on port {port} for probes: {error}") from error


def _require_tracing() -> None:
    if importlib.util.find_spec("opentelemetry") is None:
        raise click.UsageError("--otlp needs OpenTelemetry; mend: pip install 'ztunnel[tracing]'")
