# SPDX-License-Identifier: Apache-2.0
"""The nodes that the options of a command select."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Ztctl
from ztctl import targets
from ztctl.errors import CommandError, NotReachableError
from ztctl.target_selection import TargetSelection
from ztctl.targets import Target
from ztunnel.lab import names


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without ztunnel: its directories do not exist."""
    for module, name, place in (
        (targets, "RUN_DIR", "run/ztunnel"),
        (targets, "PIN_DIR", "bpf/ztunnel"),
        (targets, "LAB_STATE_DIR", "run/ztunnel-lab"),
        (names, "STATE_ROOT", "run/ztunnel-lab"),
        (names, "BPFFS", "bpf"),
    ):
        monkeypatch.setattr(module, name, tmp_path / place)
    return tmp_path


def lab(machine: Path, name: str, *nodes: str) -> None:
    """The pins of a lab's nodes, and its state."""
    state = machine / "run/ztunnel-lab" / name
    state.mkdir(parents=True)
    (state / "lab.json").write_text("{}", encoding="utf-8")
    for node in nodes:
        (machine / f"bpf/ztunnel-{name}-{node}").mkdir(parents=True)


def nodes(selection: TargetSelection) -> list[tuple[str, str]]:
    return [(each.lab, each.node) for each in selection.resolve()]


def test_installation_of_this_machine_takes_precedence_over_a_lab(machine: Path) -> None:
    (machine / "run/ztunnel").mkdir(parents=True)
    lab(machine, "lab", "node1")
    own = Target("here", machine / "run/ztunnel", machine / "bpf/ztunnel")
    assert TargetSelection(node="here").resolve() == [own]


def test_pins_alone_are_an_installation(machine: Path) -> None:
    (machine / "bpf/ztunnel").mkdir(parents=True)
    assert TargetSelection().resolve()[0].pin_dir == machine / "bpf/ztunnel"


def test_only_lab_is_the_default_with_all_its_nodes(machine: Path) -> None:
    lab(machine, "lab", "node1", "node2")
    assert nodes(TargetSelection()) == [("lab", "node1"), ("lab", "node2")]


def test_node_option_selects_one_node_of_a_lab(machine: Path) -> None:
    lab(machine, "lab", "node1", "node2")
    found = TargetSelection(lab="lab", node="node2").resolve()
    state = machine / "run/ztunnel-lab"
    assert found == [Target("node2", state / "lab/node2", machine / "bpf/ztunnel-lab-node2", "lab")]


def test_several_labs_need_the_lab_option(machine: Path) -> None:
    lab(machine, "one", "node1")
    lab(machine, "two", "node1")
    with pytest.raises(CommandError, match="one, two; hint: select one with --lab"):
        TargetSelection().resolve()
    assert nodes(TargetSelection(lab="two")) == [("two", "node1")]


def test_unknown_node_is_an_error_with_the_known_nodes(machine: Path) -> None:
    lab(machine, "lab", "node1", "node2")
    with pytest.raises(CommandError, match="it has node1, node2"):
        TargetSelection(lab="lab", node="node9").resolve()


def test_node_without_pins_is_found_by_its_socket(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab(machine, "lab")
    run_dir = machine / "run/ztunnel-lab/lab/node1"
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        monkeypatch.chdir(run_dir)  # the absolute path may be too long for a socket
        listener.bind("agent.sock")
    assert nodes(TargetSelection()) == [("lab", "node1")]


def test_machine_without_ztunnel_is_an_error_with_the_searched_paths(machine: Path) -> None:
    with pytest.raises(NotReachableError, match=str(machine / "run/ztunnel")):
        TargetSelection().resolve()


def test_directory_options_accept_missing_directories(machine: Path) -> None:
    found = TargetSelection(pin_dir=Path("/elsewhere"), node="n").resolve()
    assert found == [Target("n", machine / "run/ztunnel", Path("/elsewhere"))]


def test_invalid_lab_name_is_an_error(machine: Path) -> None:
    with pytest.raises(CommandError, match="is not usable"):
        TargetSelection(lab="No Such").resolve()


def test_option_overrides_the_environment(
    ztctl: Ztctl, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZTCTL_LAB", "fromenv")
    assert "'given'" in ztctl("--lab", "given", "status").output
    assert "'fromenv'" in ztctl("status").output
