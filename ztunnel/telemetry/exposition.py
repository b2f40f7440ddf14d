# SPDX-License-Identifier: Apache-2.0
"""Renders snapshots of the counters in Prometheus' exposition formats.

Every metric of this project is in METRICS or OWN_METRICS; a test checks the dashboard and the
documentation against them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from ztunnel.telemetry import dns_counters, same_node_rtt
from ztunnel.telemetry.dns_counters import DnsCounters
from ztunnel.telemetry.labels import LABELS, Labels
from ztunnel.telemetry.node_counters import METRICS
from ztunnel.telemetry.same_node_rtt import PAIR_LABELS, RttStats

# Name → (counter, gauge or histogram; help; labels). Counters are exposed with `_total`.
OWN_METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ztunnel_build_info": ("gauge", "Always 1; the label is the version.", ("version",)),
    "ztunnel_scrape_generated_timestamp_seconds": (
        "gauge",
        "Unix time when this response was generated. Scrapes within 0.25 s share a response.",
        (),
    ),
    "ztunnel_ready": (
        "gauge",
        "1 if the agent has a complete view of the mesh and a proxy worker is in sync with it.",
        (),
    ),
    "ztunnel_config_source_synced": ("gauge", "1 after the first complete view of the mesh.", ()),
    "ztunnel_config_source_connected": (
        "gauge",
        "1 while the API server or the manifest directory is reachable.",
        (),
    ),
    "ztunnel_config_source_last_event_age_seconds": (
        "gauge",
        "Time since the API server last sent an event or bookmark.",
        (),
    ),
    "ztunnel_config_source_revision": ("gauge", "Revision of the mesh sent to the workers.", ()),
    "ztunnel_config_source_errors": ("gauge", "Objects that cannot be read or parsed.", ()),
    "ztunnel_workers": ("gauge", "Proxy workers that are connected to the agent.", ()),
    "ztunnel_worker_messages_rejected": (
        "counter",
        "Invalid messages of proxy workers; each closed its session with the agent.",
        (),
    ),
    "ztunnel_workers_queued_bytes": ("gauge", "Bytes queued for workers.", ()),
    "ztunnel_pods": ("gauge", "Pods of this node by enrollment state.", ("state",)),
    "ztunnel_gateway_processes": ("gauge", "Connected gateway processes.", ()),
    "ztunnel_gateway_messages_rejected": (
        "counter",
        "Invalid messages of gateway processes; each closed its session.",
        (),
    ),
    "ztunnel_gateway_pods": ("gauge", "Gateway pods of this node by state.", ("state",)),
    "ztunnel_gateway_rejected_resources": (
        "gauge",
        "Resources that the Envoy of a gateway pod rejects, at most 64.",
        ("pod",),
    ),
    "ztunnel_certificate_expiry_timestamp_seconds": (
        "gauge",
        "Unix time when the certificate of an identity expires.",
        ("identity",),
    ),
    "ztunnel_certificate_renewals": ("counter", "Certificates renewed.", ("identity",)),
    "ztunnel_certificates_failing": ("gauge", "Identities whose last renewal failed.", ()),
    "ztunnel_certificates_blocked": (
        "gauge",
        "Identities for which no certificate is requested, by reason.",
        ("reason",),
    ),
    "ztunnel_bpf_events": ("counter", "Events counted by the BPF programs.", ("event",)),
    "ztunnel_bpf_pins_restored": (
        "counter",
        "Pins of BPF objects that were removed from outside and created again.",
        (),
    ),
    "ztunnel_bpf_pin_errors": (
        "gauge",
        "Pins of BPF objects that are missing or replaced; the node is not ready.",
        (),
    ),
    "ztunnel_udp_routes_missing": (
        "gauge",
        "Routes without room in zt_udp_routes; if any, UDP to unknown destinations is refused.",
        (),
    ),
    "ztunnel_udp_namespace_routes": (
        "gauge",
        "UDP routes of the namespaces that use at least a tenth of their share.",
        ("namespace",),
    ),
    "ztunnel_udp_refused_objects": (
        "gauge",
        "Services and pods whose UDP is refused because their namespace exceeds its share.",
        ("namespace",),
    ),
    "ztunnel_udp_drops": (
        "counter",
        "Redirected UDP that was dropped: datagrams without buffer space (buffer_full), and new "
        "flows beyond a pod's limit (flow_limit).",
        ("reason",),
    ),
    "ztunnel_proxy_buffered_bytes": (
        "gauge",
        "Memory of the proxy's workers that waiting payload and grown windows use.",
        (),
    ),
    "ztunnel_proxy_buffer_limit_bytes": (
        "gauge",
        "The limit of ztunnel_proxy_buffered_bytes, see --buffer-memory-mib.",
        (),
    ),
    "ztunnel_log_lines_dropped": (
        "counter",
        "Log lines of agent and proxy that were not written: their reader is too slow "
        "(queue_full), the disk is full or the reader gone (write_failed), or the access log is "
        "at its limit (rate_limit).",
        ("reason",),
    ),
    "ztunnel_dns_queries": ("counter", "DNS queries of pods by outcome.", ("outcome",)),
    "ztunnel_dns_forward_failures": (
        "counter",
        "Forwarded DNS queries that no name server answered.",
        (),
    ),
    "ztunnel_dns_dropped_addresses": (
        "counter",
        "Addresses of the cluster or node in responses of name servers that the Envoy of a gateway "
        "does not get, because it would dial them.",
        (),
    ),
    "ztunnel_dns_evicted_answers": (
        "counter",
        "Names that refused connections in the access log can no longer show, because their pod "
        "resolves more than are remembered.",
        (),
    ),
    "ztunnel_dns_forward_seconds": (
        "histogram",
        "Response time of name servers to queries forwarded by UDP.",
        (),
    ),
    "ztunnel_same_node_bypass_entries": (
        "gauge",
        "Authorized pairs whose same-node connections bypass the proxy.",
        (),
    ),
    "ztunnel_same_node_connections_terminated": (
        "counter",
        "Same-node bypass connections terminated by a policy or workload change.",
        (),
    ),
    "ztunnel_same_node_retransmits": (
        "counter",
        "TCP segments retransmitted on same-node bypass connections, counted when they close.",
        PAIR_LABELS,
    ),
    "ztunnel_same_node_rtt_seconds": (
        "histogram",
        "Smoothed round-trip time of same-node bypass connections when they close.",
        PAIR_LABELS,
    ),
    "ztunnel_bpf_program_runs": ("counter", "Runs of a BPF program (--bpf-stats).", ("program",)),
    "ztunnel_bpf_program_run_seconds": (
        "counter",
        "Time spent in a BPF program (--bpf-stats).",
        ("program",),
    ),
    "ztunnel_bpf_map_entries": ("gauge", "Entries of a BPF map.", ("map",)),
    "ztunnel_bpf_map_max_entries": ("gauge", "Capacity of a BPF map.", ("map",)),
    "ztunnel_metrics_series": ("gauge", "Series of an Istio metric.", ("metric",)),
    "ztunnel_metrics_series_overflow": (
        "counter",
        "Additions to an overflow series because a metric was at its limit.",
        (),
    ),
    "ztunnel_metrics_series_expired": (
        "counter",
        "Series removed because their workload was deleted.",
        (),
    ),
}

Sample = tuple[tuple[str, ...], float]


@dataclass
class Snapshot:
    """All values at one moment. `own` maps a name to samples, labels in OWN_METRICS' order."""

    traffic: Mapping[str, list[tuple[Labels, int]]] = field(default_factory=dict)
    rtt: list[tuple[tuple[str, ...], RttStats]] = field(default_factory=list)
    own: dict[str, list[Sample]] = field(default_factory=dict)
    dns: DnsCounters = field(default_factory=DnsCounters)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Add a sample of one of OWN_METRICS."""
        if len(labels) != len(OWN_METRICS[name][2]):
            raise ValueError(f"{name} has the labels {OWN_METRICS[name][2]}, not {labels}")
        self.own.setdefault(name, []).append((labels, value))


def render(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """The response in the format that the client accepts, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        yield from self._traffic()
        for name, (kind, text, labels) in OWN_METRICS.items():
            if kind != "histogram":
                yield _family(kind, name, text, labels, self._snapshot.own.get(name, []))
        yield self._same_node_rtt()
        yield self._dns_forwards()

    def _traffic(self) -> Iterator[Metric]:
        for name, (text, _) in METRICS.items():
            yield _family("counter", name, text, LABELS, self._snapshot.traffic.get(name, []))

    def _same_node_rtt(self) -> Metric:
        name = "ztunnel_same_node_rtt_seconds"
        family = HistogramMetricFamily(name, OWN_METRICS[name][1], labels=PAIR_LABELS)
        for labels, stats in self._snapshot.rtt:
            family.add_metric(labels, _buckets(same_node_rtt.BUCKETS_S, stats.counts), stats.total)
        return family

    def _dns_forwards(self) -> Metric:
        name, dns = "ztunnel_dns_forward_seconds", self._snapshot.dns
        family = HistogramMetricFamily(name, OWN_METRICS[name][1])
        family.add_metric((), _buckets(dns_counters.BUCKETS_S, dns.buckets), dns.seconds)
        return family


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative buckets, as the exposition formats need them."""
    return list(zip([*map(str, bounds), "+Inf"], map(float, accumulate(counts)), strict=True))


def _family(
    kind: str, name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]
) -> Metric:
    family_type = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    family = family_type(name, text, labels=labels)
    for values, amount in samples:
        family.add_metric(values, amount)
    return family
