# SPDX-License-Identifier: Apache-2.0
"""The command: `python -m tests.fuzz --help`. Runs one engine per target, one after the other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import structlog

from tests.fuzz import corpus_files, targets
from tests.fuzz.engine import load

SECONDS = 10  # an input that takes longer is a finding; libFuzzer counts whole seconds
MEGABYTES = 1024  # of which atheris and Envoy's descriptors take 530; more is a finding
KEPT = 60  # inputs per target that --keep writes, so that the corpus stays readable

_DONE = re.compile(r"Done (\d+) runs")
_COVERED = re.compile(r"cov: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """The result of the runs of one target. `covered`: branches seen; `finding`: how to reproduce
    it, empty if there is none."""

    target: str
    runs: int
    seconds: float
    covered: int
    finding: str = ""
    said: str = ""


def run(name: str, runs: int, seed: int, found: Path, *, keep: bool = False) -> Outcome:
    """Run a target on `runs` inputs; failing inputs are written to the folder `found`."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        known, new, words = (Path(scratch) / part for part in ("known", "new", "words"))
        known.mkdir()
        new.mkdir()
        target = load(name)
        for number, each in enumerate([*target.seeds, *corpus_files.read(name)]):
            (known / str(number)).write_bytes(each)
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        before = time.monotonic()
        engine = _engine(
            name,
            *(f"-runs={runs}", f"-seed={seed}", f"-timeout={SECONDS}"),
            *([f"-dict={words}"] if target.words else []),  # an empty one is an error to it
            *(f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={found}/{name}-"),
            *(str(new), str(known)),
        )
        seconds = time.monotonic() - before
        if keep and not engine.returncode:
            inputs = [path.read_bytes() for folder in (known, new) for path in folder.iterdir()]
            corpus_files.write(name, corpus_files.distilled(target.check, inputs)[:KEPT])
    return Outcome(
        name,
        int((_DONE.findall(engine.stderr) or [0])[-1]),
        round(seconds, 1),
        max(map(int, _COVERED.findall(engine.stderr)), default=0),
        _finding(name, found) if engine.returncode else "",
        (engine.stdout or engine.stderr[-2000:]) if engine.returncode else "",
    )


def _engine(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.engine", name, *options]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _finding(name: str, found: Path) -> str:
    newest = max(found.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, default=None)
    return f"python -m tests.fuzz.engine {name} {newest}" if newest else "the engine failed"


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{octet:02x}" for octet in word)


@click.command(help="Give parsers hostile input. Without TARGET each in turn.")
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--runs", default=100_000, show_default=True, help="Inputs a target.")
@click.option("--seed", default=1, show_default=True, help="The same gives the same again.")
@click.option("--found", default=".fuzz", show_default=True, help="Where to leave findings.")
@click.option("--keep", is_flag=True, help="Write the inputs worth keeping into the corpus.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def main(
    names: tuple[str, ...], *, runs: int, seed: int, found: str, keep: bool, output: str
) -> None:
    unknown = set(names) - set(targets.NAMES)
    if unknown:
        raise click.UsageError(f"no target {', '.join(unknown)}; there are {targets.NAMES}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    folder = Path(found)
    folder.mkdir(exist_ok=True)
    failed = False
    for name in names or targets.NAMES:
        outcome = run(name, runs, seed, folder, keep=keep)
        failed = failed or bool(outcome.finding)
        if output == "json":
            click.echo(json.dumps(asdict(outcome)))
        else:
            click.echo(
                f"{name:10} {outcome.runs:>9} runs {outcome.seconds:>8} s "
                f"{outcome.covered:>6} branches  {outcome.finding or 'nothing found'}"
            )
            click.echo(outcome.said, nl=False)
    sys.exit(failed)


if __name__ == "__main__":
    main()
