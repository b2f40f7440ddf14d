# SPDX-License-Identifier: Apache-2.0
"""Removed pins: the agent's descriptors keep the programs attached, and the pins are restored."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator

import pytest

from tests.bpf.netns_fixture import POD4, POD6, BpfNode
from ztunnel.agent.datapath import KernelDataPath
from ztunnel.datapath.bpf import links, loader, pins, stats, syscall
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.ipc.messages import ListenerKind

ELSEWHERE = ("203.0.113.9", 80)


@pytest.fixture
def kernel(fresh_node: BpfNode) -> Iterator[KernelDataPath]:
    made = KernelDataPath(fresh_node.pin_dir)
    yield made
    made.close()


def _remove_pins(node: BpfNode) -> None:
    """What a cleaner of the node does."""
    shutil.rmtree(node.pin_dir)


def _is_redirected(node: BpfNode) -> bool:
    with node.app_socket() as app:
        app.settimeout(1)
        try:
            app.connect(ELSEWHERE)
        except OSError:
            return False
        node.accepted(ListenerKind.OUTBOUND4).close()
    return True


def _ids(node: BpfNode) -> dict[str, int]:
    """The kernel's ID of every pinned object, by path below the pin directory."""
    found = {}
    for kind in pins.KINDS:
        for pin in (node.pin_dir / kind).glob("*"):
            fd = syscall.open_pinned(pin)
            found[f"{kind}/{pin.name}"] = int.from_bytes(syscall.object_info(fd, 8)[4:8], "little")
            os.close(fd)
    return found


def test_removed_pins_are_restored_and_traffic_stays_redirected(
    fresh_node: BpfNode, kernel: KernelDataPath
) -> None:
    before = _ids(fresh_node)
    assert f"links/sk_lookup_{fresh_node.cookie}" in before
    _remove_pins(fresh_node)
    assert _is_redirected(fresh_node)  # before the agent notices
    kernel.pins.reconcile()
    assert _ids(fresh_node) == before
    assert (kernel.pins.restored, kernel.pins.errors) == (len(before), ())
    assert _is_redirected(fresh_node)
    kernel.pins.reconcile()
    assert kernel.pins.restored == len(before)


def test_restored_data_path_is_adopted_by_a_restarted_agent(
    fresh_node: BpfNode, kernel: KernelDataPath
) -> None:
    """The new agent uses the maps that have the tags of the workers' sockets."""
    sock = kernel.sockets(fresh_node.pod, 4, 1)[0]
    with sock:
        _remove_pins(fresh_node)
        kernel.pins.reconcile()
        assert loader.load(fresh_node.cgroup, fresh_node.pin_dir) == "adopted"
        maps = Maps(fresh_node.pin_dir)
        assert maps.socket_role(sock).name == "PROXY"
        maps.close()


@pytest.mark.parametrize("name", ["maps/zt_pods", "progs/zt_sk_lookup", "links/zt_connect4"])
def test_single_removed_pin_is_restored(
    fresh_node: BpfNode, kernel: KernelDataPath, name: str
) -> None:
    before = _ids(fresh_node)
    (fresh_node.pin_dir / name).unlink()
    kernel.pins.reconcile()
    assert _ids(fresh_node) == before
    assert kernel.pins.restored == 1


def test_pod_is_released_although_its_pin_is_removed(
    fresh_node: BpfNode, kernel: KernelDataPath
) -> None:
    fresh_node.close_listeners()
    with fresh_node.server(socket.AF_INET, (POD4, 8080)), fresh_node.peer_socket() as peer:
        _remove_pins(fresh_node)
        kernel.unenroll(fresh_node.cookie)
        peer.connect((POD4, 8080))  # sk_lookup would refuse: no listener is open
    kernel.pins.reconcile()
    assert kernel.attached() == set()
    assert kernel.pins.errors == ()


def test_pod_is_captured_although_its_pin_is_removed(
    fresh_node: BpfNode, kernel: KernelDataPath
) -> None:
    before = _ids(fresh_node)
    _remove_pins(fresh_node)
    kernel.enroll(fresh_node.pod, fresh_node.cookie, (POD4, POD6))
    kernel.pins.reconcile()
    assert kernel.pins.errors == ()
    link = f"links/sk_lookup_{fresh_node.cookie}"
    assert _ids(fresh_node)[link] == before[link]  # updated in place: no second link


def test_detached_hook_is_an_error(fresh_node: BpfNode, kernel: KernelDataPath) -> None:
    link = syscall.open_pinned(fresh_node.pin_dir / "links" / "zt_connect4")
    syscall.link_detach(link)
    os.close(link)
    kernel.pins.reconcile()
    assert kernel.pins.errors == ("links/zt_connect4: detached; hint: restart the agent",)
    assert kernel.pins.restored == 0


def test_replaced_object_is_an_error(fresh_node: BpfNode, kernel: KernelDataPath) -> None:
    """Restarting the loader by hand after the removal creates maps that the agent does not use."""
    _remove_pins(fresh_node)
    assert loader.load(fresh_node.cgroup, fresh_node.pin_dir) == "loaded"
    kernel.pins.reconcile()
    assert "maps/zt_pods: replaced by another object; hint: restart the agent" in kernel.pins.errors


def test_pin_directory_that_cannot_be_restored_is_an_error(
    fresh_node: BpfNode, kernel: KernelDataPath
) -> None:
    pin_dir = fresh_node.pin_dir
    _remove_pins(fresh_node)
    pin_dir.symlink_to("/proc/ztunnel-does-not-exist")
    kernel.pins.reconcile()
    assert len(kernel.pins.errors) >= len(loader.map_names(loader.source_dir()))
    assert _is_redirected(fresh_node)
    pin_dir.unlink()
    kernel.pins.reconcile()
    assert kernel.pins.errors == ()


def test_link_of_a_pod_without_namespace_is_released(
    fresh_node: BpfNode, kernel: KernelDataPath
) -> None:
    pin = links.pod_pin(fresh_node.pin_dir, fresh_node.cookie)
    link = syscall.open_pinned(pin)
    syscall.link_detach(link)  # what the end of a network namespace does
    os.close(link)
    pin.unlink()
    kernel.pins.reconcile()
    assert not pin.exists()
    assert kernel.pins.errors == ()


def test_listener_of_a_removed_data_path_is_not_adopted(fresh_node: BpfNode) -> None:
    """No agent ran when the pins were removed: the workers' sockets are not tagged any more."""
    kernel = KernelDataPath(fresh_node.pin_dir)
    kind, sock = ListenerKind.QUERY4, fresh_node.listeners[ListenerKind.QUERY4]
    assert kernel.is_listener(sock, kind, fresh_node.cookie)
    kernel.close()
    _remove_pins(fresh_node)
    assert loader.load(fresh_node.cgroup, fresh_node.pin_dir) == "loaded"
    later = KernelDataPath(fresh_node.pin_dir)
    assert not later.is_listener(sock, kind, fresh_node.cookie)
    later.close()


def test_incomplete_maps_are_loaded_again(fresh_node: BpfNode) -> None:
    (fresh_node.pin_dir / "maps" / "zt_udp_routes").unlink()
    assert loader.load(fresh_node.cgroup, fresh_node.pin_dir) == "updated"
    names = {pin.name for pin in (fresh_node.pin_dir / "maps").iterdir()}
    assert names == set(loader.map_names(loader.source_dir()))
    assert stats.map_occupancy(fresh_node.pin_dir)
