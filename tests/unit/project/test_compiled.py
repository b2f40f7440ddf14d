# SPDX-License-Identifier: Apache-2.0
"""Compiled modules: used only if they are of these very sources, and never in silence without."""

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

SAY = (
    "from ztunnel import compiled\n"
    "compiled.ROOT = compiled.Path({root!r})\n"
    "print(compiled.use())\n"
    "import ztunnel.hbone.flow_control as flow\n"
    "print(flow.__file__)\n"
)


def run(root: Path, wish: str = "") -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that uses what is compiled below `root`."""
    env = {**os.environ, compiled.VARIABLE: wish}
    argv = [sys.executable, "-c", SAY.format(root=str(root))]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def made() -> Path:
    """What `ztunnel.compiling` made of these sources, as `scripts/setup test` has it done."""
    directory = compiled.current()
    if directory is None:
        pytest.skip("no compiled modules of these sources; mend: scripts/setup test")
    return directory


def test_modules_of_these_sources_are_used(made: Path) -> None:
    said = run(made.parent).stdout.split()
    assert said == ["True", str(compiled.module_file(made, "ztunnel.hbone.flow_control"))]


def test_all_hot_modules_are_there(made: Path) -> None:
    assert all(compiled.module_file(made, name).is_file() for name in compiled.HOT)


def test_modules_of_other_sources_are_not_used(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "0123456789abcdef0123456789abcdef")
    used, file = run(tmp_path).stdout.split()
    assert used == "False"
    assert file.endswith(".py")


def test_the_environment_may_forbid_them(made: Path) -> None:
    used, file = run(made.parent, "no").stdout.split()
    assert used == "False"
    assert file.endswith(".py")


def test_the_environment_may_insist_on_them(tmp_path: Path) -> None:
    failed = run(tmp_path, "yes")
    assert failed.returncode != 0
    assert "mend: scripts/setup" in failed.stderr


def add(package: Path) -> None:
    (package / "proxy" / "new.py").write_text("")


def remove(package: Path) -> None:
    (package / "hbone" / "events.py").unlink()


def change(package: Path) -> None:
    file = package / "mesh" / "model.py"  # not hot itself: its types are compiled in
    file.write_bytes(file.read_bytes() + b"\n")


def rename(package: Path) -> None:
    (package / "hbone" / "frames.py").rename(package / "hbone" / "framing.py")


@pytest.mark.parametrize("edit", [add, remove, change, rename])
def test_any_change_of_the_sources_has_another_digest(
    edit: Callable[[Path], None], tmp_path: Path
) -> None:
    copy = tmp_path / "ztunnel"
    shutil.copytree(compiled.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "lab"))
    assert compiled.digest(copy) == compiled.digest()
    edit(copy)
    assert compiled.digest(copy) != compiled.digest()


@pytest.mark.parametrize("name", compiled.HOT)
def test_no_hot_module_defines_what_mypyc_gets_wrong(name: str) -> None:
    """It ignores the options of structs and dataclasses: frozen ones can't be hashed then."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    source = (compiled.PACKAGE.parent / f"{name.replace('.', '/')}.py").read_text()
    assert "msgspec.Struct" not in source
    assert "@dataclass" not in source
