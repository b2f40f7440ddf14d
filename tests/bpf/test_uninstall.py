# SPDX-License-Identifier: Apache-2.0
"""`ztctl uninstall` takes the hooks off at once and removes every pin; twice is fine."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.bpf.netns_fixture import PEER4, POD4, Pocket
from ztctl.main import cli
from ztunnel.datapath import requirements
from ztunnel.datapath.bpf import syscall


def _uninstall(pin_dir: Path, run_dir: Path, *words: str) -> Result:
    where = ["--pin-dir", str(pin_dir), "--run-dir", str(run_dir)]
    return CliRunner().invoke(cli, [*where, "uninstall", *words])


def test_uninstall_leaves_no_pin_and_no_hook(fresh_pocket: Pocket, tmp_path: Path) -> None:
    pocket, run_dir = fresh_pocket, tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "agent.lock").touch()
    held = syscall.open_pinned(pocket.pin_dir / "links" / "zt_connect4")
    pins = {str(path) for path in pocket.pin_dir.rglob("*") if not path.is_dir()}
    done = _uninstall(pocket.pin_dir, run_dir, "-o", "json")
    try:
        assert done.exit_code == 0, done.output
        assert pins < {row["path"] for row in json.loads(done.output)}
        assert not pocket.pin_dir.exists()
        assert not run_dir.exists()
        _connects_natively(pocket)
    finally:
        os.close(held)
        pocket.pin_dir.mkdir()  # the fixture removes it


def _connects_natively(pocket: Pocket) -> None:
    """Both ways, though somebody still holds a link open."""
    with pocket.app_socket() as app, pytest.raises(OSError) as refused:
        app.connect((PEER4, 81))
    assert refused.value.errno == errno.ECONNREFUSED
    with pocket.server(socket.AF_INET, ("0.0.0.0", 8080)) as server, pocket.peer_socket() as peer:
        peer.connect((POD4, 8080))
        accepted, address = server.accept()
        accepted.close()
        assert address[0] == PEER4


def test_uninstall_twice_removes_nothing_more(pocket: Pocket, tmp_path: Path) -> None:
    gone = requirements.BPFFS / "ztunnel-test-none"
    for _ in range(2):
        done = _uninstall(gone, tmp_path / "none")
        assert (done.exit_code, done.output) == (
            0,
            "nothing to remove on this machine; hint: select a cluster with --context NAME\n",
        )


def test_uninstall_refuses_while_an_agent_listens(pocket: Pocket, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        done = _uninstall(pocket.pin_dir, tmp_path)
    assert done.exit_code == 1
    assert f"process {os.getpid()}" in done.output
    assert (pocket.pin_dir / "links" / "zt_connect4").exists()


def test_uninstall_touches_no_directory_that_is_not_ours(pocket: Pocket, tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    done = _uninstall(tmp_path, tmp_path / "none")
    assert done.exit_code == 1
    assert "not a directory inside a bpffs" in done.output
    done = _uninstall(requirements.BPFFS, tmp_path / "none")
    assert done.exit_code == 1
    _uninstall(requirements.BPFFS / "ztunnel-test-none", tmp_path)
    assert (tmp_path / "letters").exists()
