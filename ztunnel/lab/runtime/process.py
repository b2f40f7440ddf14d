# SPDX-License-Identifier: Apache-2.0
"""Starts background programs, each in a cgroup of its own.

The programs outlive the lab command that starts them. `ztunnel.lab.runtime.cgroups` finds them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ztunnel.lab.errors import LabError
from ztunnel.lab.runtime import cgroups

# Joins the cgroup before exec, so that the program never runs outside of it.
_JOIN_SCRIPT = 'echo $$ > "$0/cgroup.procs" && exec "$@"'

_DEBIAN_PACKAGES = {
    "mount": "mount",
    "nft": "nftables",
    "nginx": "nginx-light",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "unshare": "util-linux",
}


def in_cgroup_argv(cgroup: Path, argv: Sequence[str]) -> list[str]:
    """A command line that joins `cgroup` and then executes `argv`."""
    return ["sh", "-c", _JOIN_SCRIPT, str(cgroup), *argv]


def spawn(
    argv: Sequence[str], cgroup: Path, log: Path, env: Mapping[str, str] | None = None
) -> None:
    """Start `argv` in the background, in a new session, with its output appended to `log`.

    On return, the process is in `cgroup` or has exited. Raises LabError if it cannot be started.
    """
    cgroup.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.run(
            in_cgroup_argv(cgroup, ["setsid", "--fork", *argv]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if env is None else dict(env),
            check=False,
        )
    if process.returncode:
        raise LabError(f"cannot start {argv[0]} in {cgroup}: {tail(log)}")


def is_running(cgroup: Path) -> bool:
    """Whether a program that was started in `cgroup`, or a child of it, runs."""
    return bool(cgroups.pids(cgroup))


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for error messages."""
    try:
        text = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return f"(no log at {log})"
    return "\n  ".join([f"last lines of {log}:", *text[-lines:]])


def require(*programs: str) -> None:
    """Raise LabError with the Debian packages to install if a program is missing."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        packages = " ".join(sorted({_DEBIAN_PACKAGES[program] for program in missing}))
        raise LabError(f"{', '.join(missing)} not found in PATH; hint: apt-get install {packages}")
