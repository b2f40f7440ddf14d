# SPDX-License-Identifier: Apache-2.0
"""`ztctl check` runs the programs on this kernel and removes its resources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bpf.netns_fixture import BpfNode, run
from ztctl.commands.check import CGROUP_PREFIX
from ztctl.main import cli
from ztctl.node import probe_connection
from ztunnel.datapath import requirements


def _traces() -> dict[str, object]:
    root = requirements.cgroup2_root()
    return {
        "pins": sorted(path.name for path in requirements.BPFFS.glob("ztunnel-check*")),
        "cgroups": sorted(path.name for path in root.glob(f"{CGROUP_PREFIX}*")),
        "bpffs": [mount for mount in requirements.mounts() if mount.kind == "bpf"],
        "links": run("ip", "-o", "link"),
        "own cgroup": Path("/proc/self/cgroup").read_text(encoding="ascii"),
    }


def test_check_passes_and_removes_its_resources(node: BpfNode) -> None:
    """The fixture `node` mounts bpffs."""
    before = _traces()
    done = CliRunner().invoke(cli, ["check", "-o", "json"])
    assert done.exit_code == 0, done.output
    results = {row["check"]: row for row in json.loads(done.stdout)}
    for name in ("programs", "inbound hook", "connect hook IPv4", "connect hook IPv6"):
        assert results[name]["status"] == "ok", results[name]
    assert _traces() == before


def test_check_removes_resources_of_a_killed_check(node: BpfNode) -> None:
    stale = requirements.cgroup2_root() / f"{CGROUP_PREFIX}0"
    stale.mkdir()
    try:
        assert CliRunner().invoke(cli, ["check"]).exit_code == 0
        assert not stale.exists()
    finally:
        if stale.exists():
            stale.rmdir()


def test_concurrent_checks_do_not_interfere(node: BpfNode) -> None:
    argv = [sys.executable, "-c", "from ztctl.main import cli; cli()", "check"]
    before = _traces()
    both = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    for one in both:
        said, _ = one.communicate(timeout=60)
        assert one.returncode == 0, said
    assert _traces() == before


def test_probe_reports_a_connect_hook_that_does_not_run(
    fresh_node: BpfNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs are attached, but to a cgroup that does not contain the process."""
    outside = fresh_node.cgroup_root / f"zt-outside-{os.getpid()}"
    outside.mkdir()
    try:
        (outside / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        monkeypatch.setattr(probe_connection, "TIMEOUT_S", 0.5)
        for listener in fresh_node.listeners.values():
            listener.close()
        steps = [
            probe_connection._connect(fresh_node.pod, family, fresh_node.maps)
            for family in probe_connection._families()
        ]
        assert [step.is_ok for step in steps] == [False, False]
        assert all("cannot connect to" in step.result for step in steps)
    finally:
        (fresh_node.cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        outside.rmdir()
