# SPDX-License-Identifier: Apache-2.0
"""`ztunnel proxy`: the unprivileged data plane of a node, in one or several worker processes."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path

import click
import structlog

from ztunnel.proxy.conntrack.recent_answers import RecentAnswers
from ztunnel.proxy.context import new_context
from ztunnel.proxy.process import options
from ztunnel.proxy.process.heartbeat import HeartbeatTable
from ztunnel.proxy.process.supervisor import WATCHDOG_TIMEOUT_S, Supervisor
from ztunnel.proxy.worker import DRAIN_TIMEOUT_S, Worker
from ztunnel.telemetry.logs import LOG_FORMATS, configure_logs

DEFAULT_BUFFER_MIB = 512
DEFAULT_UID = 15008  # of no other program; 1337 is that of sidecars of Istio, in pods


@click.command("proxy")
@click.option("--node", required=True, help="Name of this node, for logs and traces.")
@options.run_dir
@options.uid(DEFAULT_UID)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Number of worker processes. They share the pods' listeners.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0, 3600),
    default=DRAIN_TIMEOUT_S,
    show_default=True,
    help="Seconds after SIGTERM until live connections are reset.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    default="",
    help="OTLP/HTTP collector that receives a span for each tunneled connection, for example "
    "http://collector:4318/v1/traces. Requires the extra `tracing`.",
)
@options.health_port
@click.option(
    "--node-ip",
    "node_ips",
    multiple=True,
    metavar="IP",
    help="Address of this node, whose probes have precedence at the health port. Repeatable.",
)
@click.option(
    "--buffer-memory-mib",
    type=click.IntRange(8, 1024 * 1024),
    default=DEFAULT_BUFFER_MIB,
    show_default=True,
    help="Memory of all workers together for payload that applications do not read. A pod uses at "
    "most half of what is free.",
)
@click.option(
    "--worker-watchdog-timeout",
    type=click.FloatRange(1, 3600),
    default=WATCHDOG_TIMEOUT_S,
    show_default=True,
    help="Seconds without a heartbeat until a worker is killed and replaced.",
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="console", show_default=True)
def command(
    *,
    node: str,
    run_dir: Path,
    uid: int,
    workers: int,
    drain_timeout: float,
    otlp_endpoint: str,
    health_port: int,
    node_ips: tuple[str, ...],
    buffer_memory_mib: int,
    worker_watchdog_timeout: float,
    log_format: str,
) -> None:
    """Forward the traffic of this node's enrolled pods.

    Needs no privilege and drops those it was started with.
    """
    configure_logs(log_format)
    structlog.contextvars.bind_contextvars(node=node)
    options.drop_privileges(uid)

    if otlp_endpoint:
        _require_tracing()

    answers = RecentAnswers()  # the workers share it

    def work(index: int, heartbeats: HeartbeatTable) -> int:
        context = new_context(workers, buffer_memory_mib * 1024 * 1024 // workers)
        context.recent_answers = answers
        worker = Worker(context, run_dir, index, drain_timeout, partial(heartbeats.beat, index))
        return _run_traced(worker, node, otlp_endpoint) if otlp_endpoint else worker.run()

    supervisor = Supervisor(workers, work, watchdog_timeout=worker_watchdog_timeout)
    if health_port:
        supervisor.serve_health(options.listen_for_probes(health_port), node_ips)
    sys.exit(supervisor.run())


def _run_traced(worker: Worker, node: str, otlp_endpoint: str) -> int:
    from ztunnel.telemetry.tracing import ConnectionTracer  # noqa: PLC0415  heavy, and an extra

    tracer = ConnectionTracer.to(otlp_endpoint, node)  # its thread would not survive a fork
    worker.context.tracker.tracer = tracer
    try:
        return worker.run()
    finally:
        tracer.close()


def _require_tracing() -> None:
    if importlib.util.find_spec("opentelemetry") is None:
        raise click.UsageError(
            "--otlp-endpoint requires OpenTelemetry; hint: pip install 'ztunnel[tracing]'"
        )
