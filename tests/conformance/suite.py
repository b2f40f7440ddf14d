# SPDX-License-Identifier: Apache-2.0
"""Runs the conformance suite of the Gateway API against a cluster and reads its results.

The suite is the program `conformance.test` (scripts/conformance-programs). It creates its own
namespaces, runs the Istio echo client in their pods, and writes a report of its profiles. The
results of single tests, and the features that each relies on, come from its output.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.conformance.profiles import Scope

VERSION = "v1.6.3"  # of the suite and of the CRDs, which must be equal
# Go names, whole seconds. Upper bounds: images are on the nodes, configuration takes milliseconds.
TIMEOUTS_S = {"NamespacesMustBeReady": 120, "DefaultTestTimeout": 30, "MaxTimeToConsistency": 20}
_END = re.compile(r"^\s*--- (PASS|FAIL|SKIP): TestConformance/(\w+) \(([\d.]+)s\)$")
_FEATURES = re.compile(r"Running (\w+), relying on the following features: (.*)$")
_UNSUPPORTED = re.compile(r"Skipping (\w+): suite does not support (\w+)$")
_START = re.compile(r"^=== (?:RUN|CONT)\s+TestConformance/\w+$")
_SECTION = re.compile(r"^=== (?:RUN|CONT|NAME)\s+TestConformance/(\w+)")


class Outcome(StrEnum):
    """Of one test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class TestRun:
    """One test of the suite. `output` is its log, in lines.

    `unsupported`: the feature because of which it was skipped.
    """

    __test__ = False  # not a test of pytest

    name: str
    outcome: Outcome = Outcome.SKIPPED
    seconds: float = 0.0
    features: tuple[str, ...] = ()
    unsupported: str = ""
    output: list[str] = field(default_factory=list)


class Output:
    """Parses the output of the suite line by line (`go test -v`)."""

    def __init__(
        self,
        on_end: Callable[[TestRun], None] = lambda _: None,
        on_start: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_end`: the results, which `go test` writes at the end. `on_start`: name of a test,
        also when a parallel test goes on."""
        self.runs: dict[str, TestRun] = {}
        self._on_end = on_end
        self._on_start = on_start
        self._current: TestRun | None = None

    def feed(self, line: str) -> None:
        """One line, without its end."""
        if found := _SECTION.match(line):
            self._current = self._run(found[1])
            if _START.match(line):
                self._on_start(found[1])
        elif found := _END.match(line):
            self._end(*found.groups())
        elif self._current is not None:
            self._current.output.append(line)
            if found := _FEATURES.search(line):
                names = (one.strip().rpartition("-")[0] for one in found[2].split(","))
                self._run(found[1]).features = tuple(names)
            elif found := _UNSUPPORTED.search(line):
                self._run(found[1]).unsupported = found[2]

    def _run(self, name: str) -> TestRun:
        return self.runs.setdefault(name, TestRun(name))

    def _end(self, word: str, name: str, seconds: str) -> None:
        run = self._run(name)
        run.outcome = {"PASS": Outcome.PASSED, "FAIL": Outcome.FAILED}.get(word, Outcome.SKIPPED)
        run.seconds = float(seconds)
        self._on_end(run)


@dataclass(frozen=True)
class Results:
    """`runs`: the tests of the scope by name. `report`: YAML, a ConformanceReport. `log`: all."""

    scope: Scope
    runs: dict[str, TestRun]
    report: str
    log: str
    seconds: float

    def with_outcome(self, outcome: Outcome) -> set[str]:
        """The names of those tests."""
        return {run.name for run in self.runs.values() if run.outcome is outcome}


@dataclass(frozen=True)
class Selection:
    """Which tests run: `only` one, or all but `skipped`.

    `keep`: leave the namespaces of the suite for another run.
    """

    only: str = ""
    skipped: Sequence[str] = ()
    keep: bool = False


def run(
    program: Path,
    kubeconfig: Path,
    directory: Path,
    scope: Scope,
    *,
    version: str,
    timeout_s: float,
    selection: Selection = Selection(),
    more: Sequence[str] = (),
) -> Results:
    """Run the tests of a scope; print a line when one starts, and the results at the end.

    `directory`: for the report. `version`: of this project, for the report. `more`: flags. The
    suite ends itself after `timeout_s` seconds: tests that have not ended are missing from the
    results.
    """
    report = directory / "report.yaml"
    labels = (f"{key}={value}" for key, value in scope.namespace_labels.items())
    flags = {
        "conformance-profiles": ",".join(scope.profiles),
        "supported-features": ",".join(sorted(scope.supported)),
        "namespace-labels": ",".join(labels),
        "timeout-config-overrides": ";".join(f"{key}:{one}" for key, one in TIMEOUTS_S.items()),
        "gateway-class": scope.gateway_class,
        "mesh-name": "" if scope.gateway_class else "ztunnel",
        "organization": "ztunnel",
        "project": "ztunnel",
        "url": "https://ztunnel.invalid",
        "version": version,
        "contact": "@ztunnel/maintainers",
        "report-output": str(report),
        "cleanup-base-resources": "false" if selection.keep else "true",
        **({"run-test": selection.only} if selection.only else {}),
        **({"skip-tests": ",".join(selection.skipped)} if selection.skipped else {}),
    }
    argv = [str(program), "-test.v", "-test.run=^TestConformance$", f"-test.timeout={timeout_s}s"]
    argv += [*(f"--{key}={value}" for key, value in flags.items()), *more]
    began = time.monotonic()
    parsed, log = _follow(argv, kubeconfig, scope)
    runs = {name: one for name, one in parsed.runs.items() if scope.has(name)}
    text = report.read_text() if report.exists() else ""
    return Results(scope, runs, text, log, time.monotonic() - began)


def _follow(argv: list[str], kubeconfig: Path, scope: Scope) -> tuple[Output, str]:
    def show(run: TestRun) -> None:
        if scope.has(run.name):
            print(f"{run.outcome:8}{run.seconds:6.1f} s  {run.name}", flush=True)

    def start(name: str) -> None:
        if scope.has(name):
            print(f"{time.monotonic() - began:6.0f} s  {name}", flush=True)

    began = time.monotonic()
    lines: list[str] = []
    parsed = Output(show, start)
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": str(kubeconfig)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            lines.append(line)
            parsed.feed(line.rstrip("\n"))
    return parsed, "".join(lines)
