# SPDX-License-Identifier: Apache-2.0
"""The loader: adopts what is current, updates in place, refuses what it must not touch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import Pocket
from ztunnel.datapath import sockopt
from ztunnel.datapath.bpf import layout, loader
from ztunnel.datapath.bpf.syscall import RawMap
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress


def test_current_programs_are_adopted_without_compiling(
    pocket: Pocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: Path) -> dict[str, int]:
        raise AssertionError("compiled again")

    monkeypatch.setattr(loader, "_compile", never)
    assert loader.load(pocket.cgroup, pocket.pin_dir) == "adopted"


def test_changed_programs_replace_the_old_under_live_links(
    fresh_pocket: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pocket = fresh_pocket
    changed = tmp_path / "bpf"
    shutil.copytree(loader.source_dir(), changed)
    (changed / "connect.c").write_text(
        (changed / "connect.c").read_text(encoding="utf-8") + "\n/* another build */\n",
        encoding="utf-8",
    )
    with pocket.app_socket() as before:
        before.connect(("10.1.1.1", 80))
        monkeypatch.setattr(loader, "source_dir", lambda: changed)
        assert loader.load(pocket.cgroup, pocket.pin_dir) == "updated"
        accepted = pocket.accepted(ListenerKind.OUTBOUND4)
        assert sockopt.original_destination(accepted) == SocketAddress("10.1.1.1", 80)
        accepted.close()
    assert [pod.netns_cookie for pod in pocket.maps.pods()] == [pocket.cookie]
    with pocket.app_socket() as after:
        after.connect(("10.1.1.2", 80))
        pocket.accepted(ListenerKind.OUTBOUND4).close()


def test_maps_of_another_abi_are_refused_with_the_mend(fresh_pocket: Pocket) -> None:
    path = fresh_pocket.pin_dir / "maps" / "zt_meta"
    table = RawMap.open(path, 4, len(bytes(layout.Meta())), read_only=False)
    table.update(bytes(4), bytes(layout.Meta(abi=99)))
    table.close()
    with pytest.raises(loader.LoadError, match="ztctl uninstall"):
        loader.load(fresh_pocket.cgroup, fresh_pocket.pin_dir)


def test_a_directory_that_is_no_cgroup_is_refused(pocket: Pocket, tmp_path: Path) -> None:
    with pytest.raises(loader.LoadError, match="ztctl check"):
        loader.load(tmp_path, pocket.pin_dir)


def test_pins_outside_a_bpffs_are_refused(pocket: Pocket, tmp_path: Path) -> None:
    with pytest.raises(loader.LoadError, match="mount -t bpf"):
        loader.load(pocket.cgroup, tmp_path / "pins")


def test_a_lost_link_is_made_anew(fresh_pocket: Pocket) -> None:
    (fresh_pocket.pin_dir / "links" / "zt_connect4").unlink()
    loader.load(fresh_pocket.cgroup, fresh_pocket.pin_dir)
    with fresh_pocket.app_socket() as app:
        app.connect(("10.1.1.3", 80))
        with fresh_pocket.accepted(ListenerKind.OUTBOUND4) as accepted:
            assert accepted.getpeername() == app.getsockname()
