# SPDX-License-Identifier: Apache-2.0
"""A node's pinned BPF maps, read once, and the rows that commands show of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ztctl import output
from ztctl.errors import CommandError, NotReachableError
from ztctl.node.pod_names import PodNames
from ztctl.targets import Target
from ztunnel.datapath.bpf.layout import Role
from ztunnel.datapath.bpf.maps import FlowEntry, Maps, PodCounters, PodEntry

NO_COUNTS = PodCounters(0, 0, 0, 0)
_KINDS = {Role.REDIRECTED: "outbound", Role.PROXY: "inbound"}


@dataclass(frozen=True)
class Snapshot:
    """The maps of one node at one moment. `counters` has netns cookies as keys."""

    target: Target
    pods: tuple[PodEntry, ...]
    counters: dict[int, PodCounters]
    flows: tuple[FlowEntry, ...]
    stats: dict[str, int]


@contextmanager
def open_maps(target: Target) -> Iterator[Maps]:
    """The maps of a node, read-only. Raises CommandError."""
    if target.pod:
        raise CommandError(
            "BPF maps can be read only on their node; hint: kubectl -n ztunnel-system exec "
            f"{target.pod} -c agent -- ztctl redirect list"
        )
    failed = f"cannot open the BPF maps in {target.pin_dir / 'maps'}"
    try:
        maps = Maps(target.pin_dir, read_only=True)
    except FileNotFoundError as error:
        raise NotReachableError(
            f"{failed}: nothing is pinned there; hint: start the agent, or set --pin-dir"
        ) from error
    except PermissionError as error:
        raise CommandError(
            f"{failed}: permission denied; hint: run as root, or with CAP_BPF"
        ) from error
    try:
        yield maps
    finally:
        maps.close()


def read_snapshot(target: Target, maps: Maps) -> Snapshot:
    """Read all maps once."""
    return Snapshot(
        target,
        pods=tuple(maps.pods()),
        counters=maps.pod_stats(),
        flows=tuple(maps.flows()),
        stats=maps.stats(),
    )


def pod_rows(snapshot: Snapshot, names: PodNames) -> list[dict[str, Any]]:
    """One row for each enrolled pod."""
    open_flows = Counter(flow.netns_cookie for flow in snapshot.flows)
    return [
        {
            "node": snapshot.target.node,
            "pod": names.of(pod),
            "addresses": list(pod.addresses),
            "netns_cookie": pod.netns_cookie,
            **asdict(snapshot.counters.get(pod.netns_cookie, NO_COUNTS)),
            "open": open_flows[pod.netns_cookie],
        }
        for pod in snapshot.pods
    ]


def flow_row(snapshot: Snapshot, flow: FlowEntry, names: PodNames) -> dict[str, Any]:
    """A connection. `original_dst` of an inbound one is the client's address."""
    by_cookie = {pod.netns_cookie: pod for pod in snapshot.pods}
    pod = by_cookie.get(flow.netns_cookie)
    age_s = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - flow.start_ns) / 1e9
    return {
        "node": snapshot.target.node,
        "pod": names.of(pod) if pod else str(flow.netns_cookie),
        "kind": _KINDS.get(flow.role, flow.role.name.lower()),
        "source": str(flow.source),
        "to": flow.port,
        "original_dst": str(flow.address),
        "age": output.format_duration(age_s),
        "age_seconds": round(age_s, 3),
        "netns_cookie": flow.netns_cookie,
    }
