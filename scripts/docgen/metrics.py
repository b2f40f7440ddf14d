# SPDX-License-Identifier: Apache-2.0
"""Reference of the metrics, from their definitions."""

from __future__ import annotations

from scripts.docgen import facts
from scripts.docgen.markdown import code, enum_members, sentence, table
from ztunnel.telemetry.exposition import OWN_METRICS
from ztunnel.telemetry.node_counters import METRICS

_SUFFIX = {"counter": "_total"}


def istio() -> str:
    """The connection metrics, which have Istio's names."""
    rows = ((code(f"{name}_total"), sentence(text)) for name, (text, _) in sorted(METRICS.items()))
    return table(("metric", "meaning"), rows)


def node() -> str:
    """The metrics of the node itself."""
    rows = (
        (
            code(name + _SUFFIX.get(kind, "")),
            kind,
            ", ".join(map(code, labels)),
            sentence(text),
        )
        for name, (kind, text, labels) in sorted(OWN_METRICS.items())
    )
    return table(("metric", "type", "labels", "meaning"), rows)


def names() -> set[str]:
    """Every metric name that Prometheus reads."""
    own = {name + _SUFFIX.get(kind, "") for name, (kind, _, _) in OWN_METRICS.items()}
    return own | {f"{name}_total" for name in METRICS}


def response_flags() -> str:
    """Values of the label `response_flags`."""
    members = enum_members("ztunnel/telemetry/response_flags.py", "Flag")
    rows = ((code(value), facts.FLAGS.get(value, "UNDESCRIBED flag")) for _, value, _ in members)
    return table(("flag", "meaning"), rows)
