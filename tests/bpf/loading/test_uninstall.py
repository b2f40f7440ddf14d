# SPDX-License-Identifier: Apache-2.0
"""`ztctl uninstall` detaches the programs immediately and removes every pin; it is idempotent."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.bpf.netns_fixture import PEER4, POD4, BpfNode
from ztctl.main import cli
from ztunnel.datapath import requirements
from ztunnel.datapath.bpf import syscall


def _uninstall(pin_dir: Path, run_dir: Path, *words: str) -> Result:
    where = ["--pin-dir", str(pin_dir), "--run-dir", str(run_dir)]
    return CliRunner().invoke(cli, [*where, "uninstall", *words])


def test_uninstall_removes_all_pins_and_detaches_all_programs(
    fresh_node: BpfNode, tmp_path: Path
) -> None:
    node, run_dir = fresh_node, tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "agent.lock").touch()
    held = syscall.open_pinned(node.pin_dir / "links" / "zt_connect4")
    pins = {str(path) for path in node.pin_dir.rglob("*") if not path.is_dir()}
    done = _uninstall(node.pin_dir, run_dir, "-o", "json")
    try:
        assert done.exit_code == 0, done.output
        assert pins < {row["path"] for row in json.loads(done.output)}
        assert not node.pin_dir.exists()
        assert not run_dir.exists()
        _connects_natively(node)
    finally:
        os.close(held)
        node.pin_dir.mkdir()  # the fixture deletes it


def _connects_natively(node: BpfNode) -> None:
    """In both directions, although a process has a link open."""
    with node.app_socket() as app, pytest.raises(OSError) as refused:
        app.connect((PEER4, 81))
    assert refused.value.errno == errno.ECONNREFUSED
    with node.server(socket.AF_INET, ("0.0.0.0", 8080)) as server, node.peer_socket() as peer:
        peer.connect((POD4, 8080))
        accepted, address = server.accept()
        accepted.close()
        assert address[0] == PEER4


def test_uninstall_twice_removes_nothing_more(node: BpfNode, tmp_path: Path) -> None:
    gone = requirements.BPFFS / "ztunnel-test-none"
    for _ in range(2):
        done = _uninstall(gone, tmp_path / "none")
        assert (done.exit_code, done.output) == (
            0,
            "nothing to remove on this machine; hint: select a cluster with --context NAME\n",
        )


def test_uninstall_fails_while_an_agent_listens(node: BpfNode, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        done = _uninstall(node.pin_dir, tmp_path)
    assert done.exit_code == 1
    assert f"process {os.getpid()}" in done.output
    assert (node.pin_dir / "links" / "zt_connect4").exists()


def test_uninstall_rejects_directories_without_pins(node: BpfNode, tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    done = _uninstall(tmp_path, tmp_path / "none")
    assert done.exit_code == 1
    assert "not a directory inside a bpffs" in done.output
    done = _uninstall(requirements.BPFFS, tmp_path / "none")
    assert done.exit_code == 1
    _uninstall(requirements.BPFFS / "ztunnel-test-none", tmp_path)
    assert (tmp_path / "letters").exists()
