# SPDX-License-Identifier: Apache-2.0
"""The loader adopts current programs, updates others in place and rejects foreign pins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import BpfNode
from ztunnel.datapath import sockopt
from ztunnel.datapath.bpf import layout, loader
from ztunnel.datapath.bpf.syscall import RawMap
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress


def test_current_programs_are_adopted_without_compiling(
    node: BpfNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: Path) -> dict[str, int]:
        raise AssertionError("compiled again")

    monkeypatch.setattr(loader, "_compile", never)
    assert loader.load(node.cgroup, node.pin_dir) == "adopted"


def test_changed_programs_are_updated_in_place_under_live_connections(
    fresh_node: BpfNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fresh_node
    changed = tmp_path / "bpf"
    shutil.copytree(loader.source_dir(), changed)
    (changed / "connect.c").write_text(
        (changed / "connect.c").read_text(encoding="utf-8") + "\n/* another build */\n",
        encoding="utf-8",
    )
    with node.app_socket() as before:
        before.connect(("10.1.1.1", 80))
        monkeypatch.setattr(loader, "source_dir", lambda: changed)
        assert loader.load(node.cgroup, node.pin_dir) == "updated"
        accepted = node.accepted(ListenerKind.OUTBOUND4)
        assert sockopt.original_destination(accepted) == SocketAddress("10.1.1.1", 80)
        accepted.close()
    assert [pod.netns_cookie for pod in node.maps.pods()] == [node.cookie]
    with node.app_socket() as after:
        after.connect(("10.1.1.2", 80))
        node.accepted(ListenerKind.OUTBOUND4).close()


def test_maps_of_another_abi_are_rejected_with_a_hint(fresh_node: BpfNode) -> None:
    path = fresh_node.pin_dir / "maps" / "zt_meta"
    table = RawMap.open(path, 4, len(bytes(layout.Meta())), read_only=False)
    table.update(bytes(4), bytes(layout.Meta(abi=99)))
    table.close()
    with pytest.raises(loader.LoadError, match="ztctl uninstall"):
        loader.load(fresh_node.cgroup, fresh_node.pin_dir)


def test_directory_outside_of_cgroup2_is_rejected(node: BpfNode, tmp_path: Path) -> None:
    with pytest.raises(loader.LoadError, match="ztctl check"):
        loader.load(tmp_path, node.pin_dir)


def test_pin_directory_outside_of_bpffs_is_rejected(node: BpfNode, tmp_path: Path) -> None:
    with pytest.raises(loader.LoadError, match="mount -t bpf"):
        loader.load(node.cgroup, tmp_path / "pins")


def test_missing_link_is_recreated(fresh_node: BpfNode) -> None:
    (fresh_node.pin_dir / "links" / "zt_connect4").unlink()
    loader.load(fresh_node.cgroup, fresh_node.pin_dir)
    with fresh_node.app_socket() as app:
        app.connect(("10.1.1.3", 80))
        with fresh_node.accepted(ListenerKind.OUTBOUND4) as accepted:
            assert accepted.getpeername()[1] == app.getsockname()[1]
