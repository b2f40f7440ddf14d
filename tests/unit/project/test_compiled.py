# SPDX-License-Identifier: Apache-2.0
"""Compiled modules are used only if they were compiled from the present sources."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ztunnel import compiled

PRINT_ORIGIN = (
    "from ztunnel import compiled\n"
    "compiled.ROOT = compiled.Path({root!r})\n"
    "print(compiled.load())\n"
    "import ztunnel.hbone.flow_control as flow\n"
    "print(flow.__file__)\n"
)


def run(root: Path, setting: str = "") -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that looks for compiled modules below `root`."""
    env = {**os.environ, compiled.VARIABLE: setting}
    argv = [sys.executable, "-c", PRINT_ORIGIN.format(root=str(root))]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def built() -> Path:
    """The modules that `scripts/setup test` compiled from the present sources."""
    directory = compiled.available()
    if directory is None:
        pytest.skip("no compiled modules of these sources; hint: scripts/setup test")
    return directory


def test_modules_of_present_sources_are_used(built: Path) -> None:
    printed = run(built.parent).stdout.split()
    assert printed == ["True", str(compiled.module_file(built, "ztunnel.hbone.flow_control"))]


def test_all_hot_modules_are_compiled(built: Path) -> None:
    assert all(compiled.module_file(built, name).is_file() for name in compiled.HOT)


def test_modules_of_other_sources_are_not_used(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "0123456789abcdef0123456789abcdef")
    used, file = run(tmp_path).stdout.split()
    assert used == "False"
    assert file.endswith(".py")


def test_environment_can_disable_compiled_modules(built: Path) -> None:
    used, file = run(built.parent, "no").stdout.split()
    assert used == "False"
    assert file.endswith(".py")


def test_environment_can_require_compiled_modules(tmp_path: Path) -> None:
    failed = run(tmp_path, "yes")
    assert failed.returncode != 0
    assert "hint: run scripts/setup" in failed.stderr


def add(package: Path) -> None:
    (package / "proxy" / "new.py").write_text("")


def remove(package: Path) -> None:
    (package / "hbone" / "events.py").unlink()


def change(package: Path) -> None:
    file = package / "mesh" / "model.py"  # not compiled itself, but hot modules depend on its types
    file.write_bytes(file.read_bytes() + b"\n")


def rename(package: Path) -> None:
    (package / "hbone" / "frames.py").rename(package / "hbone" / "framing.py")


@pytest.mark.parametrize("edit", [add, remove, change, rename])
def test_every_change_of_the_sources_changes_the_digest(
    edit: Callable[[Path], None], tmp_path: Path
) -> None:
    copy = tmp_path / "ztunnel"
    shutil.copytree(compiled.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "lab"))
    assert compiled.digest(copy) == compiled.digest()
    edit(copy)
    assert compiled.digest(copy) != compiled.digest()


@pytest.mark.parametrize("name", compiled.HOT)
def test_hot_modules_define_no_structs_and_dataclasses(name: str) -> None:
    """mypyc ignores their options, so that frozen ones cannot be hashed."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    source = (compiled.PACKAGE.parent / f"{name.replace('.', '/')}.py").read_text()
    assert "msgspec.Struct" not in source
    assert "@dataclass" not in source
