# SPDX-License-Identifier: Apache-2.0
"""Names and units of all measurements, and names of paths and peers. Pure data."""

from __future__ import annotations

from bench.comparison.results import Measurement

CROSS = "cross-node"
SAME = "same-node"
NODE = "node"

NO_MESH = "no mesh"
HAPROXY = "HAProxy"
ENVOY = "Envoy"
DETACHED = "programs not attached"

STREAMS = (1, 2, 8)
SIZES = {1: "1 B", 1024: "1 KiB", 65536: "64 KiB"}
PARALLEL = (1, 16)
PERCENTILES = ("p50", "p90", "p99")


def _streams(count: int) -> str:
    return f"{count} stream" if count == 1 else f"{count} streams"


def _at_a_time(count: int) -> str:
    return "one at a time" if count == 1 else f"{count} at a time"


BULK = {count: Measurement(f"bulk, {_streams(count)}", "Gbit/s") for count in STREAMS}
BULK_CPU = {count: Measurement(f"CPU per GB, {_streams(count)}", "s") for count in STREAMS}
TRIP = {
    (size, share): Measurement(f"round trip {name}, {share}", "us")
    for size, name in SIZES.items()
    for share in PERCENTILES
}
BESIDE = {
    share: Measurement(f"round trip 1 KiB beside a bulk stream, {share}", "us")
    for share in PERCENTILES
}
CONNECT = {count: Measurement(f"new connections, {_at_a_time(count)}", "1/s") for count in PARALLEL}
CONNECT_P99 = {
    count: Measurement(f"new connection p99, {_at_a_time(count)}", "us") for count in PARALLEL
}
CONNECT_CPU = {
    count: Measurement(f"CPU per 1,000 connections, {_at_a_time(count)}", "s") for count in PARALLEL
}
LOAD_CPU = Measurement("the load client's own CPU, bulk, 1 stream", "cores")
IDLE_MEMORY = Measurement("proxy memory, idle, a worker", "MB")
CONNECTION_MEMORY = Measurement("proxy memory per idle connection", "KiB")
AGENT_MEMORY = Measurement("agent memory", "MB")
UNENROLLED = Measurement("connect() and close() of a process that is not enrolled, p50", "us")


def open_memory(count: int) -> Measurement:
    """The memory of a proxy with `count` open connections."""
    return Measurement(f"proxy memory, {count:,} connections open", "MB")


def open_rate(count: int) -> Measurement:
    """The rate at which the second half of `count` connections was opened."""
    return Measurement(f"opening {count:,} connections to hold, 64 at a time", "1/s")
