# SPDX-License-Identifier: Apache-2.0
"""Applications that never read use a bounded part of the proxy's memory, which is returned."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.helpers.harness import APPS, addresses
from tests.support.waiting import wait_until
from ztunnel.lab import Lab
from ztunnel.proxy.cli import DEFAULT_BUFFER_MIB

CONNECTIONS = 800
PORT = "7900"
# One pod gets at most half of the node's budget; connections need some memory themselves. With
# stream windows of 4 MiB from the start, 500 KiB per connection were measured.
MAX_GROWTH_BYTES = DEFAULT_BUFFER_MIB // 2 * 1024 * 1024 + CONNECTIONS * 32 * 1024
SETTLE_S = 3.0  # the servers fill all buffers


def proxy_bytes(lab: Lab, node: str) -> int:
    """The resident memory of all processes of a proxy."""
    pids = (lab.component(node, "proxy").cgroup / "cgroup.procs").read_text().split()
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * 4096


@pytest.mark.parametrize("destination", ["mesh", "plain"])
def test_stalled_readers_use_bounded_memory_of_the_proxy(lab: Lab, destination: str) -> None:
    namespace = "default" if destination == "mesh" else "plain"
    flood = str(APPS / "flood.py")
    server = lab.popen("server", sys.executable, flood, "serve", PORT, namespace=namespace)
    target = addresses(lab, "server", namespace)[4]
    time.sleep(0.5)  # the server listens
    before = proxy_bytes(lab, "node1")
    client: subprocess.Popen[bytes] | None = None
    try:
        client = lab.popen("client", sys.executable, flood, "stall", target, PORT, str(CONNECTIONS))
        assert client.stdout is not None
        assert client.stdout.readline() == f"opened {CONNECTIONS}\n".encode()
        time.sleep(SETTLE_S)
        assert proxy_bytes(lab, "node1") - before < MAX_GROWTH_BYTES
        ok = lab.exec("client", "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "my-app")
        assert ok.returncode == 0, ok
    finally:
        for process in (client, server):
            if process is not None:
                process.kill()
                process.wait()
    wait_until(
        lambda: proxy_bytes(lab, "node1") - before < MAX_GROWTH_BYTES // 2,
        "the memory to be returned",
        timeout_s=20,
    )
