# SPDX-License-Identifier: Apache-2.0
"""The Vagrantfile is valid and runs the commands of the README."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VAGRANT = ROOT / "vagrant"


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed")
def test_vagrantfile_is_valid(tmp_path: Path) -> None:
    before = set(VAGRANT.rglob("*"))
    done = subprocess.run(
        ["vagrant", "validate"],
        cwd=VAGRANT,
        env={
            **os.environ,
            "VAGRANT_HOME": str(tmp_path / "home"),
            "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(VAGRANT.rglob("*")) == before


def test_vagrant_machine_runs_the_commands_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    vagrantfile = (VAGRANT / "Vagrantfile").read_text(encoding="utf-8")
    commands = re.findall(r"#\{CHECKOUT\} && (make \w+)", vagrantfile)
    assert commands == ["make demo", "make test"]
    assert re.findall(r"^(make \w+)", readme, re.MULTILINE)[:2] == commands
