# SPDX-License-Identifier: Apache-2.0
"""The command line of `ztunnel agent`: invalid input exits with 2 and a helpful message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel.agent import process_lock


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ztunnel.main", "agent", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def good(tmp_path: Path) -> list[str]:
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "cgroup.procs").touch()
    (tmp_path / "manifests").mkdir()
    options = {
        "--node": "n1",
        "--manifests": str(tmp_path / "manifests"),
        "--ca-dir": str(tmp_path / "ca"),
        "--cgroup": str(tmp_path / "cgroup"),
        "--run-dir": str(tmp_path / "run"),
        "--pin-dir": str(tmp_path / "pins"),
    }
    return [word for pair in options.items() for word in pair]


BAD = {
    "no such option": (["--frob"], "--frob"),
    "node name": (["--node", "Node_1"], "not a DNS name"),
    "trust domain": (["--trust-domain", "a b"], "not a DNS name"),
    "manifests": (["--manifests", "/nonexistent"], "does not exist"),
    "cgroup": (["--cgroup", "/tmp"], "not a cgroup v2 directory"),
    "ttl": (["--cert-ttl", "0"], "--cert-ttl"),
    "log format": (["--log-format", "xml"], "xml"),
    "proxy uid": (["--proxy-uid", "0"], "--proxy-uid"),
    "stray argument": (["now"], "now"),
    "two sources": (["--in-cluster"], "--in-cluster and --manifests"),
    "context alone": (["--context", "here"], "--kubeconfig"),
    "no kubeconfig": (["--kubeconfig", "/nonexistent"], "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_option_is_explained(good: list[str], case: str) -> None:
    words, expected = BAD[case]
    done = _run(*good, *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--node", "--manifests", "--ca-dir"])
def test_missing_required_option_is_named(good: list[str], option: str) -> None:
    at = good.index(option)
    done = _run(*good[:at], *good[at + 2 :])
    assert done.returncode == 2
    assert option in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_load_failure_is_reported(good: list[str]) -> None:
    done = _run(*good)
    assert done.returncode == 1
    assert "bpffs" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_directory_lock_excludes_second_agent_until_first_exits(
    tmp_path: Path,
) -> None:
    lock = process_lock.lock(tmp_path / "run")
    with pytest.raises(process_lock.AlreadyRunningError, match=f"pid {os.getpid()}"):
        process_lock.lock(tmp_path / "run")
    os.close(lock)
    os.close(process_lock.lock(tmp_path / "run"))


def test_manifests_without_ca_dir_is_a_usage_error(good: list[str]) -> None:
    where = good.index("--ca-dir")
    done = _run(*good[:where], *good[where + 2 :])
    assert done.returncode == 2
    assert "--manifests needs a --ca-dir" in done.stderr
