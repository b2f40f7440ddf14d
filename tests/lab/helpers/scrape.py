# SPDX-License-Identifier: Apache-2.0
"""Reads metrics and health of a node as Prometheus and a kubelet do."""

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
    """One line of the exposition."""

    name: str
    labels: dict[str, str]
    value: float


class Page:
    """A scrape, with sums over its samples."""

    def __init__(self, text: str) -> None:
        self.samples = [
            Sample(sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def matching(self, name: str, **labels: str) -> Iterator[Sample]:
        """Samples that have these labels and possibly others."""
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample

    def total(self, name: str, **labels: str) -> float:
        """The sum of these samples."""
        return sum(sample.value for sample in self.matching(name, **labels))


def scrape(lab: Lab, node: str) -> Page:
    """The metrics of the node, from a scrape that starts after this call."""
    now, page = time.time(), None
    while page is None or page.total("ztunnel_scrape_generated_timestamp_seconds") < now:
        done = lab.node_exec(node, "curl", "-sf", "--max-time", "10", METRICS)
        assert done.returncode == 0, done.stderr
        page = Page(done.stdout)
    return page


def readiness(lab: Lab, node: str) -> tuple[int, Any]:
    """Status code and body of the readiness endpoint; status 0 if the connection is refused."""
    done = lab.node_exec(node, "curl", "-s", "--max-time", "5", "-w", "\n%{http_code}", READY)
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), json.loads(body) if body else None
