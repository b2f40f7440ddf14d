# SPDX-License-Identifier: Apache-2.0
"""Starting programs that outlive the command that started them, each in a cgroup of its own.

Nothing of the lab stays resident to look after them: `ztunnel.lab.runtime.cgroups` tells what
lives.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ztunnel.lab.errors import LabError
from ztunnel.lab.runtime import cgroups

# Join the cgroup before anything else is executed: what follows can't be outside it for a moment.
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'

_PACKAGES = {
    "mount": "mount",
    "nft": "nftables",
    "nginx": "nginx-light",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "unshare": "util-linux",
}


def joined(cgroup: Path, argv: Sequence[str]) -> list[str]:
    """A command line that moves itself into `cgroup` and then becomes `argv`."""
    return ["sh", "-c", _JOIN, str(cgroup), *argv]


def spawn(
    argv: Sequence[str], cgroup: Path, log: Path, env: Mapping[str, str] | None = None
) -> None:
    """Start `argv` in the background: own session, output appended to `log`.

    When this returns the process exists in `cgroup`, or it has ended already.
    """
    cgroup.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        done = subprocess.run(
            joined(cgroup, ["setsid", "--fork", *argv]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if env is None else dict(env),
            check=False,
        )
    if done.returncode:
        raise LabError(f"could not start {argv[0]} in {cgroup}: {tail(log)}")


def running(cgroup: Path) -> bool:
    """Whether what was spawned in `cgroup` (or a child of it) still lives."""
    return bool(cgroups.pids(cgroup))


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return f"(no log at {log})"
    return "\n  ".join([f"last lines of {log}:", *text[-lines:]])


def require(*programs: str) -> None:
    """Raise LabError naming the Debian packages to install when a program is missing."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        packages = " ".join(sorted({_PACKAGES[program] for program in missing}))
        raise LabError(f"{', '.join(missing)} not found in PATH; mend: apt-get install {packages}")
