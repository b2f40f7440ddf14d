# SPDX-License-Identifier: Apache-2.0
"""The ctypes mirrors match the structs and constants of bpf/lib/abi.h."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path

from ztunnel.datapath import sockopt
from ztunnel.datapath.bpf import layout, loader, ring_buffer
from ztunnel.mesh import ports

STUBS = """
#include <stddef.h>
#include <stdio.h>
#include "lib/abi.h"
"""


def _c_program() -> str:
    lines = []
    for name, mirror in layout.STRUCTS.items():
        lines.append(f'printf("\\"{name}\\": [%zu", sizeof(struct {name}));')
        lines += (
            f'printf(", %zu", offsetof(struct {name}, {field[0]}));' for field in mirror._fields_
        )
        lines.append('printf("],");')
    for constant in (
        "ZT_ABI",
        "ZT_PORT_OUTBOUND",
        "ZT_PORT_INBOUND",
        "ZT_PORT_HBONE",
        "ZT_PORT_WAYPOINT",
        "ZT_PORT_DNS",
    ):
        lines.append(f'printf("\\"{constant}\\": %d,", {constant});')
    for constant in ("ZT_SOCKOPT_LEVEL", "ZT_SOCKOPT_CLIENT", "ZT_STAT_MAX", "ZT_MAX_UDP_WORKERS"):
        lines.append(f'printf("\\"{constant}\\": %d,", {constant});')
    for constant in (
        "ZT_ROLE_SAME_NODE",
        "ZT_SAME_NODE_ESTABLISHED",
        "ZT_CLOSE_UNEXPECTED_PEER",
        "ZT_EVENTS_BYTES",
    ):
        lines.append(f'printf("\\"{constant}\\": %d,", {constant});')
    for constant in ("ZT_DNS_SERVERS", "ZT_SOCKOPT_DNS_SERVER", "ZT_ROLE_RESOLVER"):
        lines.append(f'printf("\\"{constant}\\": %d,", {constant});')
    body = "\n".join(lines)
    return f'{STUBS}\nint main(void) {{ printf("{{"); {body} printf("\\"end\\": 0}}"); }}\n'


def test_mirrors_match_the_sizes_and_offsets_of_the_compiler(tmp_path: Path) -> None:
    source = tmp_path / "layout.c"
    source.write_text(_c_program(), encoding="utf-8")
    program = tmp_path / "layout"
    argv = ["cc", f"-I{loader.source_dir()}", "-o", str(program), str(source)]
    subprocess.run(argv, check=True, timeout=60)
    said = json.loads(subprocess.run([program], check=True, capture_output=True, timeout=5).stdout)
    for name, mirror in layout.STRUCTS.items():
        offsets = [getattr(mirror, field[0]).offset for field in mirror._fields_]
        assert said[name] == [ctypes.sizeof(mirror), *offsets], name
    assert said["zt_event"][0] == ring_buffer._EVENT.size
    assert said["ZT_EVENTS_BYTES"] == ring_buffer.RING_BYTES
    assert said["ZT_ABI"] == layout.ABI_VERSION
    assert said["ZT_STAT_MAX"] == len(layout.Stat)
    assert said["ZT_ROLE_SAME_NODE"] == layout.Role.SAME_NODE
    assert said["ZT_SAME_NODE_ESTABLISHED"] == layout.SameNodeState.ESTABLISHED
    assert said["ZT_CLOSE_UNEXPECTED_PEER"] == layout.CloseReason.UNEXPECTED_PEER
    assert [said["ZT_PORT_OUTBOUND"], said["ZT_PORT_INBOUND"], said["ZT_PORT_HBONE"]] == [
        ports.OUTBOUND,
        ports.INBOUND,
        ports.HBONE,
    ]
    assert said["ZT_PORT_WAYPOINT"] == ports.WAYPOINT
    assert (said["ZT_PORT_DNS"], said["ZT_DNS_SERVERS"]) == (ports.DNS, ports.DNS_SERVERS)
    assert said["ZT_SOCKOPT_DNS_SERVER"] == sockopt.ZT_SOCKOPT_DNS_SERVER
    assert said["ZT_ROLE_RESOLVER"] == layout.Role.RESOLVER
    assert said["ZT_SOCKOPT_LEVEL"] == sockopt.SOL_ZTUNNEL
    assert said["ZT_SOCKOPT_CLIENT"] == sockopt.ZT_SOCKOPT_CLIENT
    assert said["ZT_MAX_UDP_WORKERS"] == layout.MAX_UDP_WORKERS
