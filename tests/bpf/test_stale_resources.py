# SPDX-License-Identifier: Apache-2.0
"""What a killed run leaves is taken away by the next; one that lives keeps its own."""

from __future__ import annotations

import subprocess
import sys

from tests.bpf.netns_fixture import Pocket
from tests.bpf.stale_resources import tidy

POCKET = """
import sys
from tests.bpf.netns_fixture import Pocket
with Pocket():
    print("up", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_left_is_taken_away(pocket: Pocket) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", POCKET], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"up\n"
            mine = f"{run.pid}x"
            assert not [each for each in tidy() if mine in each]
        finally:
            run.kill()
        run.wait()
        removed = tidy()
    assert {f"ztp{mine}0", f"ztq{mine}0", f"zt-test-{mine}0", f"ztunnel-test-{mine}0"} <= set(
        removed
    )
    assert not tidy()
    assert pocket.cgroup.exists()
    assert pocket.pin_dir.exists()
