# SPDX-License-Identifier: Apache-2.0
"""`python -m ztunnel.compiling`: compiles the hot modules for this environment, if not yet done.

Requires the extra `compiled`, gcc, and Python's headers. Replaces the result for other sources.
`ztunnel.compiled` defines what is compiled and where the result is found.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mypyc.build import mypycify
from setuptools import Distribution

from ztunnel import compiled

OPTIONS = [
    "--config-file=",
    "--strict",
    "--explicit-package-bases",
    "--namespace-packages",
    "--hide-error-context",
]


def main() -> None:
    """Compile a copy of the package, and move the result to its final directory."""
    if compiled.available() is not None:
        return
    compiled.ROOT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=compiled.ROOT) as work:
        os.chdir(work)  # the sources may change meanwhile: the digest is that of this copy
        ignored = shutil.ignore_patterns("__pycache__", "lab", "agent", "kube", "controller")
        shutil.copytree(compiled.PACKAGE, "ztunnel", ignore=ignored)
        done = build(Path(work) / "done")
        for old in compiled.ROOT.iterdir():
            if old != Path(work):
                shutil.rmtree(old)
        done.rename(compiled.ROOT / compiled.digest(Path("ztunnel")))


def build(into: Path) -> Path:
    """Compile the package `ztunnel` in the working directory; returns `into`."""
    sources = [f"{name.replace('.', '/')}.py" for name in compiled.HOT]
    modules = mypycify([*OPTIONS, *sources], opt_level="2", group_name=compiled.GROUP)
    command = Distribution({"name": "ztunnel-compiled", "ext_modules": modules}).get_command_obj(
        "build_ext"
    )
    command.build_lib, command.build_temp = str(into), "objects"
    command.ensure_finalized()
    command.run()
    return into


if __name__ == "__main__":
    main()
