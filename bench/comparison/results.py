# SPDX-License-Identifier: Apache-2.0
"""What was measured, and what it is beside the peers: medians, ratios, rows. Pure.

A value belongs to a work, a path and a contender. Values of one round are paired by their place,
so that a ratio's spread is that of what was measured side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OURS = "ours"


@dataclass(frozen=True)
class Measurement:
    """Something measured: its name as the tables say it, and the unit of its values."""

    name: str
    unit: str


@dataclass(frozen=True)
class Row:
    """Us beside one peer: medians, their ratio, and the least and greatest ratio of a round.

    A number is None when that side was not measured.
    """

    work: str
    path: str
    peer: str
    unit: str
    ours: float | None
    theirs: float | None
    ratio: float | None
    lowest: float | None
    highest: float | None

    def as_json(self) -> dict[str, Any]:
        """The row as bench/results.json has it."""
        return {
            "work": self.work,
            "path": self.path,
            "peer": self.peer,
            "unit": self.unit,
            "ours": self.ours,
            "theirs": self.theirs,
            "ratio": self.ratio,
        }


class BenchResults:
    """All values of one run."""

    def __init__(self) -> None:
        self._values: dict[tuple[Measurement, str], dict[str, list[float | None]]] = {}
        self._absent: dict[str, str] = {}

    def add(self, measured: Measurement, path: str, contender: str, value: float | None) -> None:
        """Note the next round's value; None when this round failed."""
        self._values.setdefault((measured, path), {}).setdefault(contender, []).append(value)

    def note_absent(self, peer: str, why: str) -> None:
        """A peer that takes no part, and why."""
        self._absent[peer] = why

    def values(self, measured: Measurement, path: str, contender: str) -> list[float]:
        """What was measured, round by round, without the rounds that failed."""
        found = self._values.get((measured, path), {}).get(contender, [])
        return [value for value in found if value is not None]

    def median(self, measured: Measurement, path: str, contender: str) -> float | None:
        """The median of the rounds, None when there is none."""
        found = self.values(measured, path, contender)
        return statistics.median(found) if found else None

    def ratio(self, measured: Measurement, path: str, peer: str) -> float | None:
        """Our median by the peer's."""
        return divide(self.median(measured, path, OURS), self.median(measured, path, peer))

    def spread(self, measured: Measurement, path: str, peer: str) -> tuple[float, float] | None:
        """The least and the greatest ratio of a round."""
        both = self._values.get((measured, path), {})
        pairs = zip(both.get(OURS, []), both.get(peer, []), strict=False)
        ratios = [ratio for one, other in pairs if (ratio := divide(one, other)) is not None]
        return (min(ratios), max(ratios)) if ratios else None

    def rows(self) -> list[Row]:
        """One row for each work, path and peer, in the order they were first measured."""
        return [*self._measured_rows(), *self._absent_rows()]

    def _measured_rows(self) -> Iterator[Row]:
        for (measured, path), contenders in self._values.items():
            for peer in contenders if set(contenders) != {OURS} else [""]:
                if peer != OURS:
                    yield self._row(measured, path, peer)

    def _row(self, measured: Measurement, path: str, peer: str) -> Row:
        lowest, highest = self.spread(measured, path, peer) or (None, None)
        return Row(
            work=measured.name,
            path=path,
            peer=peer,
            unit=measured.unit,
            ours=self.median(measured, path, OURS),
            theirs=self.median(measured, path, peer),
            ratio=self.ratio(measured, path, peer),
            lowest=lowest,
            highest=highest,
        )

    def _absent_rows(self) -> Iterator[Row]:
        for peer, why in self._absent.items():
            yield Row(f"not measured: {why}", "", peer, "", None, None, None, None, None)


def divide(one: float | None, other: float | None) -> float | None:
    """The ratio, None when there is no such thing."""
    return None if one is None or other is None or other == 0 else one / other
