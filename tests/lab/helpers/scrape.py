# SPDX-License-Identifier: Apache-2.0
"""Reading a node's metrics and health as Prometheus and a kubelet would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from ztunnel.lab import Lab

METRICS = "http://127.0.0.1:15020/metrics"
READY = "http://127.0.0.1:15021/healthz/ready"


@dataclass(frozen=True)
class Sample:
    """One line of the page."""

    name: str
    labels: dict[str, str]
    value: float


class Page:
    """A scrape, to be asked for sums."""

    def __init__(self, text: str) -> None:
        self.samples = [
            Sample(sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def matching(self, name: str, **labels: str) -> Iterator[Sample]:
        """Samples with these labels, whatever others they have."""
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample

    def total(self, name: str, **labels: str) -> float:
        """The sum of these."""
        return sum(sample.value for sample in self.matching(name, **labels))


def scrape(lab: Lab, node: str) -> Page:
    """The node's metrics: a page that was begun after this call."""
    now, page = time.time(), None
    while page is None or page.total("ztunnel_scrape_generated_timestamp_seconds") < now:
        done = lab.node_exec(node, "curl", "-sf", "--max-time", "10", METRICS)
        assert done.returncode == 0, done.stderr
        page = Page(done.stdout)
    return page


def readiness(lab: Lab, node: str) -> tuple[int, Any]:
    """Status and answer of the node's readiness; 0 when nobody answers."""
    done = lab.node_exec(node, "curl", "-s", "--max-time", "5", "-w", "\n%{http_code}", READY)
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), json.loads(body) if body else None
