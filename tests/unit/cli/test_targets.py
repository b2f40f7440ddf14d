# SPDX-License-Identifier: Apache-2.0
"""Which node a command means."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Ztctl
from ztctl import targets
from ztctl.errors import CommandError, NotReachableError
from ztctl.targets import Installation, Selection
from ztunnel.lab import names


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of a machine on which nothing of ztunnel is."""
    for module, name, place in (
        (targets, "RUN_DIR", "run/ztunnel"),
        (targets, "PIN_DIR", "bpf/ztunnel"),
        (targets, "LAB_STATE", "run/ztunnel-lab"),
        (names, "STATE_ROOT", "run/ztunnel-lab"),
        (names, "BPFFS", "bpf"),
    ):
        monkeypatch.setattr(module, name, tmp_path / place)
    return tmp_path


def lab(machine: Path, name: str, *nodes: str) -> None:
    """What a lab leaves on the machine that its nodes are known by."""
    state = machine / "run/ztunnel-lab" / name
    state.mkdir(parents=True)
    (state / "lab.json").write_text("{}", encoding="utf-8")
    for node in nodes:
        (machine / f"bpf/ztunnel-{name}-{node}").mkdir(parents=True)


def nodes(selection: Selection) -> list[tuple[str, str]]:
    return [(each.lab, each.node) for each in selection.find()]


def test_the_machines_own_comes_first(machine: Path) -> None:
    (machine / "run/ztunnel").mkdir(parents=True)
    lab(machine, "lab", "node1")
    own = Installation("here", machine / "run/ztunnel", machine / "bpf/ztunnel")
    assert Selection(node="here").find() == [own]


def test_pins_alone_are_an_installation(machine: Path) -> None:
    (machine / "bpf/ztunnel").mkdir(parents=True)
    assert Selection().find()[0].pin_dir == machine / "bpf/ztunnel"


def test_the_only_lab_is_meant_with_all_its_nodes(machine: Path) -> None:
    lab(machine, "lab", "node1", "node2")
    assert nodes(Selection()) == [("lab", "node1"), ("lab", "node2")]


def test_one_node_of_a_lab(machine: Path) -> None:
    lab(machine, "lab", "node1", "node2")
    found = Selection(lab="lab", node="node2").find()
    state = machine / "run/ztunnel-lab"
    assert found == [
        Installation("node2", state / "lab/node2", machine / "bpf/ztunnel-lab-node2", "lab")
    ]


def test_several_labs_must_be_named(machine: Path) -> None:
    lab(machine, "one", "node1")
    lab(machine, "two", "node1")
    with pytest.raises(CommandError, match="one, two; choose one with --lab"):
        Selection().find()
    assert nodes(Selection(lab="two")) == [("two", "node1")]


def test_unknown_node_is_answered_with_those_there_are(machine: Path) -> None:
    lab(machine, "lab", "node1", "node2")
    with pytest.raises(CommandError, match="it has node1, node2"):
        Selection(lab="lab", node="node9").find()


def test_a_node_is_found_by_its_socket_when_its_pins_are_gone(machine: Path) -> None:
    lab(machine, "lab")
    run_dir = machine / "run/ztunnel-lab/lab/node1"
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(run_dir / "agent.sock"))
    assert nodes(Selection()) == [("lab", "node1")]


def test_nothing_here_says_where_it_looked(machine: Path) -> None:
    with pytest.raises(NotReachableError, match=str(machine / "run/ztunnel")):
        Selection().find()


def test_given_directories_need_not_exist_yet(machine: Path) -> None:
    found = Selection(pin_dir=Path("/elsewhere"), node="n").find()
    assert found == [Installation("n", machine / "run/ztunnel", Path("/elsewhere"))]


def test_a_bad_lab_name_is_explained(machine: Path) -> None:
    with pytest.raises(CommandError, match="is not usable"):
        Selection(lab="No Such").find()


def test_option_beats_the_environment(
    ztctl: Ztctl, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZTCTL_LAB", "fromenv")
    assert "'given'" in ztctl("--lab", "given", "status").output
    assert "'fromenv'" in ztctl("status").output
