# SPDX-License-Identifier: Apache-2.0
"""Privileges of agent and proxy, and the effect of each process crashing."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from tests.lab.helpers.harness import APPS, addresses, client
from tests.support.waiting import wait_until
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.lab import Lab


def _status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _tree(cgroup: Path) -> list[int]:
    return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]


def test_proxy_runs_unprivileged_without_capabilities(lab: Lab) -> None:
    pids = _tree(lab.names.node_cgroup("node1") / "proxy")
    assert pids
    for pid in pids:
        status = _status(pid)
        for which in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[which], 16) == 0, f"{which} of {pid}"
        assert set(status["Uid"].split()) == {"15008"}
        assert set(status["Gid"].split()) == {"15008"}
        assert status["Groups"].strip() == ""
        assert status["NoNewPrivs"].strip() == "1"


def test_proxy_stays_in_the_network_namespace_of_the_node(lab: Lab) -> None:
    """The sockets of the proxy are in the pods nevertheless: the agent passes them."""
    node = Path("/run/netns") / lab.names.node_netns("node1")
    for pid in _tree(lab.names.node_cgroup("node1") / "proxy"):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            assert os.stat(thread / "ns/net").st_ino == node.stat().st_ino


def test_long_running_processes_do_not_load_bcc(lab: Lab) -> None:
    for part in ("agent", "proxy"):
        for pid in _tree(lab.names.node_cgroup("node1") / part):
            mapped = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"libbcc|libLLVM", mapped), f"{part} {pid}"


class _Traffic:
    """Open connections one after the other in the background for some seconds."""

    def __init__(self, lab: Lab, seconds: float) -> None:
        target = addresses(lab, "server")[4]
        self.result: dict[str, Any] = {}
        self._thread = threading.Thread(
            target=lambda: self.result.update(
                client(lab, "client", "repeat", target, 7000, str(seconds))
            )
        )

    def __enter__(self) -> _Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_agent_restart_interrupts_no_connection(lab: Lab) -> None:
    pinned = {node: _pins(lab, node) for node in ("node1", "node2")}
    target = addresses(lab, "server")[4]
    held = lab.popen("client", sys.executable, str(APPS / "client.py"), "hold", target, "7000")
    assert held.stdin is not None
    assert held.stdout is not None
    assert held.stdout.readline() == b"connected\n"
    with _Traffic(lab, 8) as traffic:
        for node in ("node1", "node2"):
            lab.kill(node, "agent")
        _say(held.stdin, held.stdout, b"without agents\n")
        for node in ("node1", "node2"):
            lab.start(node, "agent")
        _say(held.stdin, held.stdout, b"with new agents\n")
    assert traffic.result["failed"] == 0, traffic.result
    assert traffic.result["good"] > 100
    assert {node: _pins(lab, node) for node in pinned} == pinned
    held.stdin.close()
    held.wait(10)
    held.stdout.close()


def _say(stdin: Any, stdout: Any, line: bytes) -> None:
    stdin.write(line)
    stdin.flush()
    assert stdout.readline() == line


def _pins(lab: Lab, node: str) -> set[str]:
    root = lab.names.pin_dir(node)
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_without_the_proxy_connections_are_refused_not_sent_in_plaintext(lab: Lab) -> None:
    inside, outside = addresses(lab, "server")[4], addresses(lab, "server", "plain")[4]
    lab.kill("node1", "proxy")
    try:
        for target in (inside, outside):
            assert client(lab, "client", "poke", target, 7000) == {"end": "ECONNREFUSED"}
        near = addresses(lab, "near")[4]
        said = client(lab, "client", "poke", near, 7000, namespace="plain")
        assert said == {"end": "ECONNREFUSED"}
    finally:
        lab.start("node1", "proxy")
    wait_until(
        lambda: client(lab, "client", "poke", inside, 7000) == {"end": "data"},
        "the proxy to serve again",
    )


def test_without_agent_and_proxy_connections_are_refused(lab: Lab) -> None:
    lab.kill("node1", "agent")
    lab.kill("node1", "proxy")
    try:
        target = addresses(lab, "server")[4]
        assert client(lab, "client", "poke", target, 7000) == {"end": "ECONNREFUSED"}
        maps = Maps(lab.names.pin_dir("node1"), read_only=True)
        assert addresses(lab, "client")[4] in {ip for pod in maps.pods() for ip in pod.addresses}
        maps.close()
    finally:
        lab.start("node1", "proxy")  # the agent is ready only when a worker serves its pods
        lab.start("node1", "agent")
    wait_until(
        lambda: client(lab, "client", "poke", target, 7000) == {"end": "data"},
        "the node to serve again",
    )
