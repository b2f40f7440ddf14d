# SPDX-License-Identifier: Apache-2.0
"""The part of Envoy's bootstrap that metrics need."""

from __future__ import annotations

from ztunnel.l7.config import Json

# Envoy's and Istio's default buckets, for milliseconds as well as for bytes (istio.io,
# "Customizing Istio Metrics", sidecar.istio.io/statsHistogramBuckets).
HISTOGRAM_BUCKETS = (
    *(0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0),
    *(30_000.0, 60_000.0, 300_000.0, 600_000.0, 1_800_000.0, 3_600_000.0),
)
STATS_FLUSH_INTERVAL_S = 5  # Envoy's default: histograms are as old as this, counters are current
STATS_EVICTION_INTERVAL_S = 1800  # a series that is not used for twice as long is removed


def stats_config() -> Json:
    """The message `StatsConfig` of the bootstrap."""
    return {
        "use_all_default_tags": True,
        "histogram_bucket_settings": [
            {"match": {"contains": "istio_re"}, "buckets": list(HISTOGRAM_BUCKETS)}
        ],
    }


def fields(eviction_interval_s: int = STATS_EVICTION_INTERVAL_S) -> Json:
    """The fields of the bootstrap: statistics, and their eviction."""
    flush = min(STATS_FLUSH_INTERVAL_S, eviction_interval_s)  # eviction is a multiple of it
    return {
        "stats_config": stats_config(),
        "stats_flush_interval": f"{flush}s",
        "stats_eviction_interval": f"{eviction_interval_s}s",
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
    }
