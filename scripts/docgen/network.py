# SPDX-License-Identifier: Apache-2.0
"""Reference of the ports and sockets, from the constants."""

from __future__ import annotations

from scripts.docgen.markdown import code, table
from ztunnel.agent.config import Options
from ztunnel.mesh import ports as pod


def ports() -> str:
    """Ports inside pods and ports of the node."""
    dns = f"{pod.DNS}-{pod.DNS + pod.DNS_SERVERS - 1}"
    rows = (
        (str(pod.OUTBOUND), "TCP", "captured pod, loopback", "proxy", "Redirected outbound TCP."),
        (str(pod.INBOUND), "TCP", "captured pod", "proxy", "Redirected inbound plaintext TCP."),
        (str(pod.HBONE), "TCP", "captured pod", "proxy", "HBONE (HTTP/2 CONNECT over mTLS)."),
        (str(pod.DNS), "TCP", "captured pod, loopback", "proxy", "Redirected DNS over TCP."),
        (dns, "UDP", "captured pod, loopback", "proxy", "Redirected DNS; a port per resolver."),
        (
            str(pod.WAYPOINT),
            "TCP",
            "waypoint pod, 127.0.0.1",
            "Envoy",
            "Connections for the waypoint, after a PROXY header; the proxy's sockets only.",
        ),
        (
            str(pod.XDS),
            "TCP",
            "gateway pod, loopback",
            "gateway process",
            "Delta ADS: Envoy gets its configuration.",
        ),
        (
            str(pod.GATEWAY_METRICS),
            "TCP",
            "gateway pod",
            "gateway process",
            "`/metrics`: Envoy's statistics, under Istio's names.",
        ),
        (
            str(pod.GATEWAY_READINESS),
            "TCP",
            "gateway pod",
            "Envoy",
            "`/healthz/ready`.",
        ),
        (
            str(pod.GATEWAY_ADMIN),
            "TCP",
            "gateway pod, 127.0.0.1",
            "Envoy",
            "Envoy's admin interface.",
        ),
        (
            "ephemeral",
            "UDP",
            "captured pod",
            "proxy",
            "Carried UDP: one socket per worker and family.",
        ),
        (
            str(Options.metrics_port),
            "TCP",
            "node",
            "agent",
            "`/metrics` and `/stats/prometheus`; set by `--metrics-port`.",
        ),
        (
            str(Options.health_port),
            "TCP",
            "node",
            "agent",
            "`/healthz/ready` and `/healthz/live`; set by `--health-port`.",
        ),
        (
            "15021",
            "TCP",
            "proxy pod, controller pod",
            "proxy, controller",
            "Health of that process, as `deploy/` sets `--health-port`.",
        ),
        (
            "ephemeral",
            "TCP",
            "node, 127.0.0.1",
            "agent",
            "Admin API for `ztctl --context` (TLS and token); only when the agent runs in a pod.",
        ),
    )
    return table(("port", "protocol", "where", "process", "purpose"), map(_first_as_code, rows))


def _first_as_code(row: tuple[str, ...]) -> tuple[str, ...]:
    return (code(row[0]), *row[1:])
