# SPDX-License-Identifier: Apache-2.0
"""Large libraries that the agent must not load: they would stay in memory."""

from __future__ import annotations

import subprocess
import sys

# in MB: LLVM 100, Kubernetes' client 20, gRPC 20, pyroute2 with its dependencies 10
UNWANTED = ("bcc", "kubernetes", "grpc", "pyroute2", "sqlite3", "unittest", "opentelemetry", "rich")


def test_an_agent_that_watches_manifests_loads_no_library_that_it_does_not_use() -> None:
    program = (
        "import sys, ztunnel.main, ztunnel.agent.cli, ztunnel.agent.agent\n"
        f"print(*sorted(name for name in {UNWANTED!r} if sys.modules.get(name)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.split() == []
