# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard queries existing metrics only, and the docs name every metric."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ztunnel.telemetry.exposition import OWN_METRICS
from ztunnel.telemetry.labels import LABELS
from ztunnel.telemetry.node_counters import METRICS

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD = ROOT / "deploy" / "grafana" / "ztunnel.json"
SCRAPED = {"instance", "job", "le"}  # added by Prometheus or by a histogram
_METRIC = re.compile(r"\b((?:istio|ztunnel)_[a-z0-9_]+)\b")
_SELECTOR = re.compile(r"\b((?:istio|ztunnel)_[a-z0-9_]+)\{([^}]*)\}")
_GROUPING = re.compile(r"by \(([^)]*)\)")


def exposed() -> dict[str, set[str]]:
    """The labels of every sample name."""
    found = {f"{name}_total": set(LABELS) for name in METRICS}
    for name, (kind, _, labels) in OWN_METRICS.items():
        suffixes = {"counter": ["_total"], "gauge": [""]}.get(kind, ["_bucket", "_sum", "_count"])
        found.update({name + suffix: set(labels) for suffix in suffixes})
    return found


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def test_dashboard_has_the_fields_that_grafana_needs(dashboard: dict[str, Any]) -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= set(dashboard)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
    for panel in dashboard["panels"]:
        assert set(panel["gridPos"]) == {"h", "w", "x", "y"}
        assert panel["type"] == "row" or panel["targets"]


def test_every_metric_exists(dashboard: dict[str, Any]) -> None:
    asked = {name for _, text in expressions(dashboard) for name in _METRIC.findall(text)}
    assert asked <= set(exposed())
    assert {f"{name}_total" for name in METRICS} <= asked


def test_every_label_exists_on_its_metric(dashboard: dict[str, Any]) -> None:
    known = exposed()
    for title, text in expressions(dashboard):
        for name, selector in _SELECTOR.findall(text):
            used = set(re.findall(r"([a-z_]+)\s*=", selector))
            assert used <= known[name] | SCRAPED, (title, name)
        grouped = {label.strip() for each in _GROUPING.findall(text) for label in each.split(",")}
        available = set().union(*(known[name] for name in _METRIC.findall(text) if name in known))
        assert grouped <= available | SCRAPED, title


def test_every_variable_is_defined(dashboard: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(dashboard, ensure_ascii=False)))
    assert used <= defined


def test_documentation_names_every_metric() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    missing = [name for name in exposed() if name not in text and not name.endswith(_HISTOGRAM)]
    assert missing == []


_HISTOGRAM = ("_bucket", "_sum", "_count")
