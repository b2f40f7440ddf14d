# SPDX-License-Identifier: Apache-2.0
"""A test run that is ended by a signal runs its teardowns."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest

SUITE = """
import os, pathlib, signal, pytest

@pytest.fixture(scope="session")
def lab():
    made = pathlib.Path("made")
    made.touch()
    yield made
    pathlib.Path("going").touch()
    signal.raise_signal(signal.SIGTERM)  # somebody is impatient
    made.unlink()

def test_takes_long(lab):
    ready, notify = os.pipe()
    if not (child := os.fork()):
        os.write(notify, b"1")
        signal.pause()
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert lab.exists()
    print("begun", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", conftest.END_SIGNALS)
def test_signal_ends_a_run_in_order(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "conftest.py").write_text(Path(conftest.__file__).read_text())
    (tmp_path / "test_it.py").write_text(SUITE)
    heeding = ["env", f"--default-signal={number.name.removeprefix('SIG')}"]  # also under nohup
    process = subprocess.Popen(
        [*heeding, sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as out:
        for line in out:
            if "begun" in line:
                break
        process.send_signal(number)
        said = out.read()
    assert process.wait(30) == pytest.ExitCode.INTERRUPTED, said
    assert (tmp_path / "going").exists(), said
    assert not (tmp_path / "made").exists(), said
