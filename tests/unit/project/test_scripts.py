# SPDX-License-Identifier: Apache-2.0
"""Every script parses, and `make help` lists every target."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if not path.suffix]


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci/run"], ids=lambda path: path.name)
def test_script_is_executable_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    interpreter = script.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
    assert interpreter in ("/bin/bash", "/bin/sh")
    subprocess.run([interpreter, "-n", str(script)], check=True, timeout=20)


@pytest.mark.parametrize(
    "part", [path for path in FILES if path.suffix], ids=lambda path: path.name
)
def test_sourced_script_parses_and_is_not_executable(part: Path) -> None:
    assert part.suffix == ".bash"
    assert not os.access(part, os.X_OK)
    subprocess.run(["bash", "-n", str(part)], check=True, timeout=20)


def test_make_without_a_target_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE)) - {"help"}
    said = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout
    assert set(re.findall(r"^make (\w+)", said, re.MULTILINE)) == targets


def test_every_source_file_names_its_license() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py", "*.c", "*.h", "scripts", "Makefile", ".ci"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name and _has_content(ROOT / name)]
    unnamed = [name for name in names if not _names_licence(ROOT / name)]
    assert unnamed == []


def _names_licence(path: Path) -> bool:
    head = path.read_text(encoding="utf-8").splitlines()[:2]
    wanted = (
        "(GPL-2.0-only OR BSD-2-Clause)"
        if path.relative_to(ROOT).parts[0] == "bpf"
        else "Apache-2.0"
    )
    return any(f"SPDX-License-Identifier: {wanted}" in line for line in head)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
