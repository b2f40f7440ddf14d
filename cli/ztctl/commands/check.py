# SPDX-License-Identifier: Apache-2.0
"""`ztctl check`: whether this machine meets the requirements of ztunnel.

The check loads the BPF programs in a process and a cgroup of its own, and removes everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import click

from ztctl.context import Context, output_option
from ztctl.errors import CommandError
from ztctl.node import requirement_checks
from ztctl.node.requirement_checks import CheckResult, Status
from ztctl.output import Column, Format
from ztunnel.datapath import requirements
from ztunnel.ipc.python_process import python_argv

PROBE_TIMEOUT_S = 180.0  # most of it for the compiler, which takes a minute on emulated CPUs
REMOVE_TIMEOUT_S = 5.0
CGROUP_PREFIX = "ztunnel-check-"
_COLUMNS = (
    Column("CHECK", "check"),
    Column("STATUS", "status"),
    Column("RESULT", "result"),
)
_KERNEL_HINT = "boot Linux 5.18 or later with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL"


@click.command()
@output_option
@click.pass_obj
def check(context: Context) -> None:
    """Check that this machine meets the requirements, with a redirected connection as the proof.

    Loads the BPF programs in a cgroup and namespaces of its own, opens one connection, and removes
    everything. Exits with 1 if a required check fails.

    \b
    Examples:
      ztctl check
      ztctl check -o json
    """
    results = list(requirement_checks.run_checks())
    if requirement_checks.can_load(results):
        results += _probe()
    else:
        results.append(CheckResult("programs", Status.SKIP, "skipped: a required check failed"))
    rows = [{**asdict(result), "status": result.status.value} for result in results]
    context.print_rows(rows, _COLUMNS)
    if context.output_format is Format.TABLE:
        _print_hints(results)
    failed = [result.check for result in results if result.status is Status.FAIL]
    if failed:
        raise CommandError(f"this machine cannot run ztunnel: failed: {', '.join(failed)}")


def _print_hints(results: list[CheckResult]) -> None:
    hints = [f"  {result.check}: {result.hint}" for result in results if result.hint]
    if hints:
        click.echo("\n".join(["", "Hints:", *hints]))


def _probe() -> list[CheckResult]:
    """Run the probe in new namespaces and a new cgroup."""
    argv = ["unshare", "--mount", "--net", *python_argv("ztctl.node.probe_connection")]
    with _probe_cgroup() as cgroup:
        try:
            process = subprocess.run(
                [*argv, str(cgroup)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [_failed(f"timed out after {PROBE_TIMEOUT_S:.0f} s", "retry on an idle machine")]
        except OSError as error:
            return [_failed(str(error), "apt-get install util-linux")]
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        return [_failed(lines[-1] if lines else f"exit code {process.returncode}", _KERNEL_HINT)]
    return [
        CheckResult(
            step["name"],
            Status.OK if step["is_ok"] else Status.FAIL,
            step["result"],
            "" if step["is_ok"] else _KERNEL_HINT,
        )
        for step in json.loads(process.stdout.splitlines()[-1])
    ]


def _failed(result: str, hint: str) -> CheckResult:
    return CheckResult("programs", Status.FAIL, result, hint)


@contextmanager
def _probe_cgroup() -> Iterator[Path]:
    """A cgroup for the probe. Also removes the cgroups of checks that were killed."""
    root = requirements.cgroup2_root()
    for stale in root.glob(f"{CGROUP_PREFIX}*"):
        if not Path("/proc", stale.name.removeprefix(CGROUP_PREFIX)).exists():
            with suppress(OSError):
                stale.rmdir()
    cgroup = root / f"{CGROUP_PREFIX}{os.getpid()}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        _remove(cgroup)


def _remove(cgroup: Path) -> None:
    with suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1", encoding="ascii")
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while True:
        try:
            cgroup.rmdir()
            return
        except OSError as error:  # the kernel reports EBUSY shortly after the last exit
            if time.monotonic() > deadline:
                raise CommandError(
                    f"cannot remove {cgroup}: {error}; hint: rmdir {cgroup}"
                ) from error
            time.sleep(0.01)
