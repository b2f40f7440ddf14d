# SPDX-License-Identifier: Apache-2.0
"""Resource usage belongs to the right processes."""

from __future__ import annotations

import os
import subprocess

from bench.comparison import usage


def test_children_are_those_a_process_has_started() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert child.pid in usage.children(os.getpid())
            assert usage.children(child.pid) == ()
            assert usage.resident_bytes([child.pid]) > 0
        finally:
            child.kill()
