# SPDX-License-Identifier: Apache-2.0
"""Runs all measurements, round by round, and adds their values to the results.

All contenders take their turn in one measurement before the next, and another contender starts in
each round, so that other load on the machine affects all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from bench.comparison import measurements, usage
from bench.comparison.load import Holder, Load, LoadError, Report, finish
from bench.comparison.measurements import PERCENTILES
from bench.comparison.results import OURS, BenchResults, Measurement, divide
from bench.comparison.testbed import Contender, Testbed

_HEAD_START = 0.2  # seconds that a bulk stream runs before the measurement beside it

Measure = Callable[[Contender], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Rounds:
    """How many rounds, of what length."""

    results: BenchResults
    load: Load
    note: Note
    count: int
    seconds: float

    def run(self, path: str, contenders: Sequence[Contender], only: frozenset[str]) -> None:
        """Run all measurements of one path. `only`: the kinds to run; empty means all."""
        kinds = self._kinds()
        for number in range(self.count):
            turn = [
                *contenders[number % len(contenders) :],
                *contenders[: number % len(contenders)],
            ]
            self.note(f"{path}, round {number + 1} of {self.count}")
            for kind, measure in kinds:
                if not only or kind in only:
                    for contender in turn:
                        measure(contender)

    def _kinds(self) -> Iterable[tuple[str, Measure]]:
        return (
            *(("bulk", partial(self._bulk, streams)) for streams in measurements.STREAMS),
            *(("trip", partial(self._trip, size)) for size in measurements.SIZES),
            *(("connect", partial(self._connect, parallel)) for parallel in measurements.PARALLEL),
            ("beside", self._beside),
        )

    def _bulk(self, streams: int, contender: Contender) -> None:
        add = partial(_add, self.results, contender)
        report, cpu = self._job(contender, "bulk", streams)
        gigabytes = report["bytes"] / 1e9 if report else None
        seconds = report["seconds"] if report else None
        rate = divide(gigabytes, seconds)
        add(measurements.BULK[streams], None if rate is None else rate * 8)
        if contender.processes:
            add(measurements.BULK_CPU[streams], divide(cpu, gigabytes))
        if streams == 1:
            add(measurements.LOAD_CPU, divide(report["cpu"], seconds) if report else None)

    def _trip(self, size: int, contender: Contender) -> None:
        report, _ = self._job(contender, "trip", size)
        for share in PERCENTILES:
            self._note_share(contender, measurements.TRIP[size, share], report, share)

    def _connect(self, parallel: int, contender: Contender) -> None:
        add = partial(_add, self.results, contender)
        report, cpu = self._job(contender, "connect", parallel)
        count = report["count"] if report else None
        add(measurements.CONNECT[parallel], divide(count, report["seconds"]) if report else None)
        self._note_share(contender, measurements.CONNECT_P99[parallel], report, "p99")
        if contender.processes:
            add(measurements.CONNECT_CPU[parallel], divide(cpu * 1000, count))

    def _beside(self, contender: Contender) -> None:
        """Small requests beside a bulk stream of the same pods, which ztunnel and Envoy put in one
        tunnel."""
        longer = self.seconds + 2 * _HEAD_START
        bulk = self.load.start(contender.place, "bulk", *contender.address, 1, longer)
        report: Report | None = None
        with suppress(LoadError):
            report, _ = self._job(contender, "trip", 1024)
        try:
            finish(bulk, longer)
        except LoadError as error:
            self._failed(contender, "bulk", error)
            report = None
        for share in PERCENTILES:
            self._note_share(contender, measurements.BESIDE[share], report, share)

    def _note_share(
        self, contender: Contender, measured: Measurement, report: Report | None, share: str
    ) -> None:
        _add(self.results, contender, measured, report[share] if report else None)

    def _job(self, contender: Contender, job: str, what: int) -> tuple[Report | None, float]:
        """The report, None if the job failed, and the CPU seconds of the contender meanwhile."""
        before = usage.cpu_seconds(contender.processes)
        try:
            report = self.load.run(
                contender.place, job, *contender.address, what, self.seconds, seconds=self.seconds
            )
        except LoadError as error:
            self._failed(contender, f"{job} {what}", error)
            return None, 0.0
        return report, usage.cpu_seconds(contender.processes) - before

    def _failed(self, contender: Contender, job: str, error: LoadError) -> None:
        self.note(f"failed: {contender.name}, {contender.path}, {job}: {error}")


def hold(
    testbed: Testbed, contender: Contender, count: int, results: BenchResults, note: Note
) -> None:
    """Memory with `count` connections open; memory per connection between a tenth and half of them.

    A peer that cannot hold `count` connections is still measured at half of them.
    """
    add = partial(_add, results, contender)
    few, half = count // 10, count // 2
    note(f"{contender.path}, {count:,} connections held by {contender.name}")
    if contender.proxies:
        add(measurements.IDLE_MEMORY, max(_resident(contender)) / 1e6)
    try:
        with Holder(testbed.load, contender.place, contender.address) as holder:
            holder.open(few)
            before = _resident(contender)
            holder.open(half)
            grown = [new - old for old, new in zip(before, _resident(contender), strict=True)]
            if contender.proxies:
                add(measurements.CONNECTION_MEMORY, max(grown) / (half - few) / 1024)
            report = holder.open(count)
            holder.check()
            after = _resident(contender)
    except LoadError as error:
        note(f"failed: {contender.name}, {contender.path}, hold {count}: {error}")
        return
    add(measurements.open_rate(count), report["count"] / report["seconds"])
    if contender.proxies:
        add(measurements.open_memory(count), max(after) / 1e6)


def unenrolled(testbed: Testbed, results: BenchResults, count: int, seconds: float) -> None:
    """The cost of connect() and close() for a process outside the mesh."""
    for _ in range(count):
        for name, place in ((OURS, testbed.attached), (measurements.DETACHED, testbed.detached)):
            report = testbed.load.run(place, "self", seconds, seconds=seconds)
            results.add(measurements.UNENROLLED, measurements.NODE, name, report["p50"])


def agents(testbed: Testbed, results: BenchResults) -> None:
    """The memory of the larger of the two agents."""
    largest = max(usage.resident_bytes([pid]) for pid in testbed.pids("agent"))
    results.add(measurements.AGENT_MEMORY, measurements.NODE, OURS, largest / 1e6)


def _resident(contender: Contender) -> list[int]:
    return [usage.resident_bytes([pid]) for pid in contender.proxies]


def _add(
    results: BenchResults, contender: Contender, measured: Measurement, value: float | None
) -> None:
    results.add(measured, contender.path, contender.name, value)
