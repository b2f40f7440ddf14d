# SPDX-License-Identifier: Apache-2.0
"""Events derived from two snapshots of a node's BPF maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ztctl.node.map_snapshot import NO_COUNTS, Snapshot, flow_row
from ztctl.node.pod_names import PodNames


def changes(before: Snapshot, after: Snapshot, names: PodNames) -> Iterator[dict[str, Any]]:
    """The changes between two snapshots, as rows with `event`, `pod` and `detail`.

    Events are `captured` and `released` (pods), `opened` and `closed` (connections), `counted`.
    """
    old, new = set(before.pods), set(after.pods)
    for pod in sorted(new - old, key=lambda pod: pod.netns_cookie):
        yield _event(after, "captured", names.of(pod), ",".join(pod.addresses))
    yield from _flow_changes(before, after, names)
    yield from _counter_changes(before, after, names)
    for pod in sorted(old - new, key=lambda pod: pod.netns_cookie):
        yield _event(after, "released", names.of(pod), ",".join(pod.addresses))


def _flow_changes(before: Snapshot, after: Snapshot, names: PodNames) -> Iterator[dict[str, Any]]:
    for event, snapshot, other in (("opened", after, before), ("closed", before, after)):
        known = set(other.flows)
        for flow in snapshot.flows:
            if flow not in known:
                row = flow_row(snapshot, flow, names)
                detail = f"{row['kind']} {row['source']} -> {row['original_dst']}"
                yield _event(after, event, row["pod"], detail)


def _counter_changes(
    before: Snapshot, after: Snapshot, names: PodNames
) -> Iterator[dict[str, Any]]:
    for pod in after.pods:
        old = asdict(before.counters.get(pod.netns_cookie, NO_COUNTS))
        new = asdict(after.counters.get(pod.netns_cookie, NO_COUNTS))
        if increases := _increases(old, new):
            yield _event(after, "counted", names.of(pod), increases)
    if increases := _increases(before.stats, after.stats):
        yield _event(after, "counted", "", increases)


def _increases(old: dict[str, int], new: dict[str, int]) -> str:
    deltas = {name: new[name] - old.get(name, 0) for name in new}
    return " ".join(f"{name}+{delta}" for name, delta in deltas.items() if delta > 0)


def _event(snapshot: Snapshot, event: str, pod: str, detail: str) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "node": snapshot.target.node,
        "event": event,
        "pod": pod,
        "detail": detail,
    }
