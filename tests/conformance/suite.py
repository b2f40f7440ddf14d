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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

VERSION = "v1.6.3"  # of the suite and of the CRDs, which must be equal
PROFILES = ("MESH-HTTP", "MESH-GRPC")
CORE = frozenset(
    {"Mesh", "HTTPRoute", "GRPCRoute"}
)  # pkg/features, MeshCoreFeatures and the routes
EXTENDED = (  # pkg/features/mesh.go, MeshExtendedFeatures: all of them
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
)
OTHER = (  # of no mesh profile, but mesh tests rely on them
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
)
# Go names, whole seconds. Upper bounds: images are on the nodes, configuration takes milliseconds.
TIMEOUTS_S = {"NamespacesMustBeReady": 120, "DefaultTestTimeout": 30, "MaxTimeToConsistency": 20}
_NAME = "Mesh"  # prefix of the names of all mesh tests
_END = re.compile(r"^\s*--- (PASS|FAIL|SKIP): TestConformance/(\w+) \(([\d.]+)s\)$")
_FEATURES = re.compile(r"Running (\w+), relying on the following features: (.*)$")
_SECTION = re.compile(r"^=== (?:RUN|CONT|NAME)\s+TestConformance/(\w+)")


class Outcome(StrEnum):
    """Of one test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Level(StrEnum):
    """Which part of the mesh profiles a test belongs to."""

    CORE = "core"
    EXTENDED = "extended"
    NONE = "no profile"


@dataclass
class TestRun:
    """One test of the suite. `output` is its log, in lines."""

    __test__ = False  # not a test of pytest

    name: str
    outcome: Outcome = Outcome.SKIPPED
    seconds: float = 0.0
    features: tuple[str, ...] = ()
    output: list[str] = field(default_factory=list)

    @property
    def level(self) -> Level:
        """By the features it relies on, as in the suite's own report."""
        more = set(self.features) - CORE
        if not more:
            return Level.CORE
        return Level.EXTENDED if more <= set(EXTENDED) else Level.NONE


class Output:
    """Parses the output of the suite line by line (`go test -v`)."""

    def __init__(self, on_end: Callable[[TestRun], None] = lambda _: None) -> None:
        self.runs: dict[str, TestRun] = {}
        self._on_end = on_end
        self._current: TestRun | None = None

    def feed(self, line: str) -> None:
        """One line, without its end."""
        if found := _SECTION.match(line):
            self._current = self._run(found[1])
        elif found := _END.match(line):
            self._end(*found.groups())
        elif self._current is not None:
            self._current.output.append(line)
            if found := _FEATURES.search(line):
                names = (one.strip().rpartition("-")[0] for one in found[2].split(","))
                self._run(found[1]).features = tuple(names)

    def _run(self, name: str) -> TestRun:
        return self.runs.setdefault(name, TestRun(name))

    def _end(self, word: str, name: str, seconds: str) -> None:
        run = self._run(name)
        run.outcome = {"PASS": Outcome.PASSED, "FAIL": Outcome.FAILED}.get(word, Outcome.SKIPPED)
        run.seconds = float(seconds)
        self._on_end(run)


@dataclass(frozen=True)
class Results:
    """`runs`: the mesh tests by name. `report`: YAML, a ConformanceReport. `log`: all output."""

    runs: dict[str, TestRun]
    report: str
    log: str
    seconds: float

    def with_outcome(self, outcome: Outcome) -> set[str]:
        """The names of those tests."""
        return {run.name for run in self.runs.values() if run.outcome is outcome}


def run(
    program: Path,
    kubeconfig: Path,
    directory: Path,
    *,
    namespace_labels: Mapping[str, str],
    version: str,
    timeout_s: float,
    only: str = "",
    keep: bool = False,
) -> Results:
    """Run the mesh tests, or `only` one of them, and print a line when one ends.

    `keep`: leave the namespaces of the suite, with the waypoint, for another run.

    `directory`: for the report. `version`: of this project, for the report. The suite ends itself
    after `timeout_s` seconds: tests that have not ended are missing from the results.
    """
    report = directory / "report.yaml"
    flags = {
        "conformance-profiles": ",".join(PROFILES),
        "supported-features": ",".join((*sorted(CORE), *EXTENDED, *OTHER)),
        "namespace-labels": ",".join(f"{key}={value}" for key, value in namespace_labels.items()),
        "timeout-config-overrides": ";".join(f"{key}:{one}" for key, one in TIMEOUTS_S.items()),
        "gateway-class": "",
        "mesh-name": "ztunnel",
        "organization": "ztunnel",
        "project": "ztunnel",
        "url": "https://ztunnel.invalid",
        "version": version,
        "contact": "@ztunnel/maintainers",
        "report-output": str(report),
        "cleanup-base-resources": "false" if keep else "true",
        **({"run-test": only} if only else {}),
    }
    argv = [str(program), "-test.v", "-test.run=^TestConformance$", f"-test.timeout={timeout_s}s"]
    began = time.monotonic()
    parsed, log = _follow(
        [*argv, *(f"--{key}={value}" for key, value in flags.items())], kubeconfig
    )
    runs = {name: one for name, one in parsed.runs.items() if name.startswith(_NAME)}
    text = report.read_text() if report.exists() else ""
    return Results(runs, text, log, time.monotonic() - began)


def _follow(argv: list[str], kubeconfig: Path) -> tuple[Output, str]:
    lines: list[str] = []
    parsed = Output(_print_progress)
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


def _print_progress(run: TestRun) -> None:
    if run.name.startswith(_NAME):
        print(f"{run.outcome:8}{run.seconds:6.1f} s  {run.name}", flush=True)
