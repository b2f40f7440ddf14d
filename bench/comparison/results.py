# SPDX-License-Identifier: Apache-2.0
"""Values of a run and their comparison with the peers: medians, ratios, rows. Pure.

A value belongs to a measurement, a path and a contender. Values of one round are paired, so the
spread of a ratio covers only what was measured side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OURS = "ours"


@dataclass(frozen=True)
class Measurement:
    """A measured quantity: its name in tables and its unit."""

    name: str
    unit: str


@dataclass(frozen=True)
class Row:
    """ztunnel beside one peer: medians, their ratio, and the lowest and highest ratio of a round.

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
        """The row in bench/results.json."""
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
        """Add the value of the next round; None if the round failed."""
        self._values.setdefault((measured, path), {}).setdefault(contender, []).append(value)

    def note_absent(self, peer: str, why: str) -> None:
        """Record why a peer was not measured."""
        self._absent[peer] = why

    def values(self, measured: Measurement, path: str, contender: str) -> list[float]:
        """The values of all rounds that did not fail."""
        found = self._values.get((measured, path), {}).get(contender, [])
        return [value for value in found if value is not None]

    def median(self, measured: Measurement, path: str, contender: str) -> float | None:
        """The median of the rounds, None if there is none."""
        found = self.values(measured, path, contender)
        return statistics.median(found) if found else None

    def ratio(self, measured: Measurement, path: str, peer: str) -> float | None:
        """The median of ztunnel divided by that of the peer."""
        return divide(self.median(measured, path, OURS), self.median(measured, path, peer))

    def spread(self, measured: Measurement, path: str, peer: str) -> tuple[float, float] | None:
        """The lowest and the highest ratio of a round."""
        both = self._values.get((measured, path), {})
        pairs = zip(both.get(OURS, []), both.get(peer, []), strict=False)
        ratios = [ratio for one, other in pairs if (ratio := divide(one, other)) is not None]
        return (min(ratios), max(ratios)) if ratios else None

    def rows(self) -> list[Row]:
        """One row per measurement, path and peer, in the order of measurement."""
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
    """The ratio, None if it is undefined."""
    return None if one is None or other is None or other == 0 else one / other
