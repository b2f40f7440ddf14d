# SPDX-License-Identifier: Apache-2.0
"""From snapshots of counters to what Prometheus reads.

Every metric of this project is in METRICS or OWN: the dashboard and the documentation are checked
against them.
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

from ztunnel.telemetry import dns_counters as queries_module
from ztunnel.telemetry.dns_counters import Queries
from ztunnel.telemetry.labels import LABELS, Labels
from ztunnel.telemetry.node_counters import METRICS
from ztunnel.telemetry.same_node_rtt import BUCKETS, PAIR_LABELS, RttStats

# Name → (counter or gauge, help, labels). Counters get `_total` in what Prometheus reads.
OWN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ztunnel_build_info": ("gauge", "1, with the version.", ("version",)),
    "ztunnel_page_timestamp_seconds": ("gauge", "When this page was made, Unix time.", ()),
    "ztunnel_ready": ("gauge", "1 when the node is ready: agent, proxy and all pods.", ()),
    "ztunnel_source_synced": ("gauge", "1 when a first complete view of the mesh is there.", ()),
    "ztunnel_source_connected": ("gauge", "1 while the API server, or directory, is there.", ()),
    "ztunnel_source_age_seconds": ("gauge", "Since the API server was last heard of.", ()),
    "ztunnel_source_revision": ("gauge", "Revision of the mesh that workers are told.", ()),
    "ztunnel_source_errors": ("gauge", "Objects that can't be read or understood.", ()),
    "ztunnel_workers": ("gauge", "Proxy workers that are connected to the agent.", ()),
    "ztunnel_workers_queued_bytes": ("gauge", "Bytes that wait for workers to read.", ()),
    "ztunnel_pods": ("gauge", "Pods of this node by how far their capture is.", ("state",)),
    "ztunnel_certificate_expiry_timestamp_seconds": (
        "gauge",
        "When the certificate of an identity ends, Unix time.",
        ("identity",),
    ),
    "ztunnel_certificate_renewals": ("counter", "Certificates renewed.", ("identity",)),
    "ztunnel_certificates_failing": ("gauge", "Identities whose last renewal failed.", ()),
    "ztunnel_certificates_withheld": (
        "gauge",
        "Identities whose service account does not exist.",
        (),
    ),
    "ztunnel_kernel_events": ("counter", "What the BPF programs count.", ("event",)),
    "ztunnel_udp_drops": (
        "counter",
        "Datagrams of carried UDP that found no room; flows beyond a pod's limit.",
        ("of",),
    ),
    "ztunnel_dns_queries": ("counter", "DNS queries of pods by what they got.", ("outcome",)),
    "ztunnel_dns_forward_failures": ("counter", "Queries that no name server answered.", ()),
    "ztunnel_dns_forward_seconds": ("histogram", "What name servers took, by UDP.", ()),
    "ztunnel_same_node_verdicts": ("gauge", "Pairs that go without the proxy.", ()),
    "ztunnel_same_node_destroyed": ("counter", "Connections by verdict destroyed.", ()),
    "ztunnel_same_node_retransmits": (
        "counter",
        "Segments sent again on connections by verdict, when they end.",
        PAIR_LABELS,
    ),
    "ztunnel_same_node_rtt_seconds": (
        "histogram",
        "Smoothed round-trip time of connections by verdict at their end, from the kernel.",
        PAIR_LABELS,
    ),
    "ztunnel_bpf_program_runs": ("counter", "Runs of a BPF program (--bpf-stats).", ("program",)),
    "ztunnel_bpf_program_run_seconds": (
        "counter",
        "Time spent in a BPF program (--bpf-stats).",
        ("program",),
    ),
    "ztunnel_bpf_map_entries": ("gauge", "Entries of a BPF map.", ("map",)),
    "ztunnel_bpf_map_max_entries": ("gauge", "Room of a BPF map.", ("map",)),
    "ztunnel_metric_series": ("gauge", "Series of a metric of connections.", ("metric",)),
    "ztunnel_metric_overflow": ("counter", "Additions that went to an overflow series.", ()),
    "ztunnel_metric_retired": ("counter", "Series forgotten, their workloads being gone.", ()),
}

Sample = tuple[tuple[str, ...], float]


@dataclass
class Snapshot:
    """All there is to say at one moment. `own` has samples by name, labels in OWN's order."""

    traffic: Mapping[str, list[tuple[Labels, int]]] = field(default_factory=dict)
    paths: list[tuple[tuple[str, ...], RttStats]] = field(default_factory=list)
    own: dict[str, list[Sample]] = field(default_factory=dict)
    queries: Queries = field(default_factory=Queries)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Add a sample of one of OWN's metrics."""
        if len(labels) != len(OWN[name][2]):
            raise ValueError(f"{name} has the labels {OWN[name][2]}, not {labels}")
        self.own.setdefault(name, []).append((labels, value))


def render(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """The page in the form that a client accepts, and its content type."""
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
        for name, (kind, text, names) in OWN.items():
            if kind != "histogram":
                yield _family(kind, name, text, names, self._snapshot.own.get(name, []))
        yield from self._paths()
        yield self._forwards()

    def _traffic(self) -> Iterator[Metric]:
        for name, (text, _) in METRICS.items():
            yield _family("counter", name, text, LABELS, self._snapshot.traffic.get(name, []))

    def _paths(self) -> Iterator[Metric]:
        name = "ztunnel_same_node_rtt_seconds"
        family = HistogramMetricFamily(name, OWN[name][1], labels=PAIR_LABELS)
        for labels, path in self._snapshot.paths:
            family.add_metric(labels, _buckets(BUCKETS, path.counts), path.total)
        yield family

    def _forwards(self) -> Metric:
        name, queries = "ztunnel_dns_forward_seconds", self._snapshot.queries
        family = HistogramMetricFamily(name, OWN[name][1])
        family.add_metric((), _buckets(queries_module.BUCKETS, queries.buckets), queries.seconds)
        return family


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    return list(zip([*map(str, bounds), "+Inf"], map(float, accumulate(counts)), strict=True))


def _family(
    kind: str, name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]
) -> Metric:
    made = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    family = made(name, text, labels=labels)
    for values, amount in samples:
        family.add_metric(values, amount)
    return family
