# SPDX-License-Identifier: Apache-2.0
"""`ztctl check`: can this machine run ztunnel? Leaves nothing behind.

The facts come from `checks`, the proof from `probe` in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import click

from ztctl import requirement_checks
from ztctl.context import Context, output_option
from ztctl.errors import CommandError
from ztctl.output import Column, Format
from ztctl.requirement_checks import Result, Status
from ztunnel.datapath import requirements

PROBE_TIMEOUT = 180.0  # seconds; the compile takes most of it, emulated one minute
PREFIX = "ztunnel-check-"
COLUMNS = (
    Column("CHECK", "check"),
    Column("STATUS", "status"),
    Column("FOUND", "found"),
)
_MEND = "boot Linux 5.18 or newer with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL; see what was found"


@click.command()
@output_option
@click.pass_obj
def check(context: Context) -> None:
    """Check that this machine can run ztunnel, down to a connection that is redirected.

    Loads the real programs in a cgroup and namespaces of their own, dials once, and removes
    everything. Ends with 1 when a required check fails.

    \b
    Examples:
      ztctl check
      ztctl check -o json
    """
    results = list(requirement_checks.facts())
    results += _probe() if requirement_checks.ready_to_load(results) else [_skipped()]
    rows = [{**asdict(result), "status": result.status.value} for result in results]
    context.print_rows(rows, COLUMNS)
    if context.form is Format.TABLE:
        _print_mends(results)
    failed = [result.check for result in results if result.status is Status.FAIL]
    if failed:
        raise CommandError(f"ztunnel can't run here yet; failed: {', '.join(failed)}")


def _print_mends(results: list[Result]) -> None:
    mends = [f"  {result.check}: {result.mend}" for result in results if result.mend]
    if mends:
        click.echo("\n".join(["", "To do:", *mends]))


def _skipped() -> Result:
    return Result("programs", Status.SKIP, "not tried: a check above failed")


def _probe() -> list[Result]:
    """Run the probe in fresh namespaces and a fresh cgroup."""
    argv = ["unshare", "--mount", "--net", sys.executable, "-m", "ztctl.probe_connection"]
    with _cgroup() as cgroup:
        try:
            done = subprocess.run(
                [*argv, str(cgroup)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            found = f"did not load within {PROBE_TIMEOUT:.0f} s"
            return [Result("programs", Status.FAIL, found, "try again when this machine is idle")]
        except OSError as error:
            return [Result("programs", Status.FAIL, str(error), "apt-get install util-linux")]
    if done.returncode:
        said = done.stderr.strip().splitlines()
        found = said[-1] if said else f"the probe ended with {done.returncode}"
        return [Result("programs", Status.FAIL, found, _MEND)]
    return [
        Result(
            each["name"],
            Status.OK if each["ok"] else Status.FAIL,
            each["found"],
            "" if each["ok"] else _MEND,
        )
        for each in json.loads(done.stdout.splitlines()[-1])
    ]


@contextmanager
def _cgroup() -> Iterator[Path]:
    """A cgroup for the probe; also removes those that a killed check left."""
    root = requirements.cgroup2_root()
    for stale in root.glob(f"{PREFIX}*"):
        if not Path("/proc", stale.name.removeprefix(PREFIX)).exists():  # else another check's
            with suppress(OSError):
                stale.rmdir()
    made = root / f"{PREFIX}{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        _remove(made)


def _remove(cgroup: Path) -> None:
    with suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1", encoding="ascii")
    deadline = time.monotonic() + 5
    while True:
        try:
            cgroup.rmdir()
            return
        except OSError as error:  # busy for a moment after the last exit
            if time.monotonic() > deadline:
                raise CommandError(f"could not remove {cgroup}: {error}; rmdir it") from error
            time.sleep(0.01)
