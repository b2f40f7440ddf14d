# SPDX-License-Identifier: Apache-2.0
"""Generated regions of Markdown pages.

    <!-- generated: NAME; run scripts/docs generate -->
    ...
    <!-- end generated -->

Text outside the markers is written by hand. Generation is deterministic: it depends on the sources
only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scripts.docgen import bpf, cli, decisions, kubernetes, limits, log_events, metrics, network

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_REGION = re.compile(
    r"(<!-- generated: ([a-z0-9-]+); run scripts/docs generate -->\n).*?(<!-- end generated -->)",
    re.DOTALL,
)

GENERATORS = {
    "bpf-counters": bpf.counters,
    "bpf-maps": bpf.maps,
    "bpf-programs": bpf.programs,
    "cli-ztctl": cli.ztctl,
    "cli-ztunnel": cli.ztunnel,
    "csr-reasons": kubernetes.csr_reasons,
    "decisions": decisions.index,
    "events": kubernetes.events,
    "labels": kubernetes.labels,
    "limits-bpf": limits.bpf,
    "limits-python": limits.python,
    "log-events": log_events.process_table,
    "log-events-access": log_events.access_table,
    "metrics-istio": metrics.istio,
    "metrics-node": metrics.node,
    "pod-errors": kubernetes.pod_errors,
    "ports": network.ports,
    "rbac": kubernetes.rbac,
    "response-flags": metrics.response_flags,
}


def pages() -> list[Path]:
    """Every Markdown page below docs/."""
    return sorted(DOCS.rglob("*.md"))


def generate() -> Iterator[str]:
    """Write the regions that changed; yields the paths written."""
    for path, old, new in _rendered():
        if old != new:
            path.write_text(new, encoding="utf-8")
            yield str(path.relative_to(ROOT))


def stale() -> Iterator[str]:
    """One message for each page that `generate` would change, and each unused generator."""
    seen: set[str] = set()
    for path, old, new in _rendered():
        seen |= {match[1] for match in _REGION.findall(old)}
        if old != new:
            yield f"{path.relative_to(ROOT)}: stale; hint: run `scripts/docs generate`"
    for name in sorted(GENERATORS.keys() - seen):
        yield f"generator {name}: no page uses it"


def _rendered() -> Iterator[tuple[Path, str, str]]:
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if _REGION.search(text):
            yield path, text, _REGION.sub(_region, text)


def _region(match: re.Match[str]) -> str:
    return f"{match[1]}\n{GENERATORS[match[2]]().strip()}\n\n{match[3]}"
