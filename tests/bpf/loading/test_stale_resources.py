# SPDX-License-Identifier: Apache-2.0
"""Resources of killed runs are removed; those of running ones remain."""

from __future__ import annotations

import subprocess
import sys

from tests.bpf.netns_fixture import BpfNode
from tests.bpf.stale_resources import remove_stale_resources

NODE_PROGRAM = """
import sys
from tests.bpf.netns_fixture import BpfNode
with BpfNode() as node:
    (node.cgroup / "child").mkdir()
    print("up", flush=True)
    sys.stdin.read()
"""


def test_resources_of_a_killed_run_are_removed(node: BpfNode) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", NODE_PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"up\n"
            mine = f"{run.pid}x"
            assert not [each for each in remove_stale_resources() if mine in each]
        finally:
            run.kill()
        run.wait()
        removed = remove_stale_resources()
    assert {f"ztp{mine}0", f"ztq{mine}0", f"zt-test-{mine}0", f"ztunnel-test-{mine}0"} <= set(
        removed
    )
    assert not remove_stale_resources()
    assert node.cgroup.exists()
    assert node.pin_dir.exists()
