# SPDX-License-Identifier: Apache-2.0
"""No module is imported from the working directory, PYTHONPATH or the user's directory."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import ztunnel
from ztunnel.agent.datapath import LoadFailedError, load
from ztunnel.ipc.python_process import python_argv

ROOT = Path(ztunnel.__file__).parents[1]
PLANTED = "click.py", "ztunnel.py", "structlog.py", "site.py", "json.py"


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with modules that create this file when they are imported."""
    marker = tmp_path / "imported"
    for name in PLANTED:
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    return marker


@pytest.mark.parametrize("module", ["ztunnel.main", "ztctl.main"])
def test_planted_module_is_not_imported(planted: Path, module: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(planted.parent)}
    process = subprocess.run(
        python_argv(module, "--help"), env=environment, capture_output=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
    assert b"Usage" in process.stdout
    assert not planted.exists()


async def test_loader_does_not_import_planted_module(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(planted.parent))
    with pytest.raises(LoadFailedError, match="absent"):
        await load(planted.parent / "absent", planted.parent / "pins")
    assert not planted.exists()


def test_every_module_is_started_isolated() -> None:
    pattern = re.compile(r"""["']-m["'],\s*["'](?:ztunnel|ztctl)|python3? -m z""")
    own = Path(__file__).name, "python_process.py"
    for package in ("ztunnel", "cli", "bench"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name not in own:
                code = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
                assert not pattern.search(code), path
    containerfile = (ROOT / "deploy/Containerfile").read_text()
    assert "python -m" not in containerfile.replace("python3 -m venv", "")
