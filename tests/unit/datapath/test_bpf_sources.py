# SPDX-License-Identifier: Apache-2.0
"""The sources in bpf/ are plain C, and the loader gives all of them to BCC."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ztunnel.datapath.bpf import loader

BPF = loader.source_dir()
ATTACH_POINTS = sorted(BPF.glob("*.c"))
HEADERS = sorted((BPF / "lib").glob("*.h"))
NAMES = [hook.program for hook in (*loader.CGROUP_HOOKS, loader.SK_LOOKUP)]
KERNEL_NAME_BYTES = 15  # BPF_OBJ_NAME_LEN of linux/bpf.h, without the final zero
PROGRAM = re.compile(r'^SEC\("(?P<section>[^"]+)"\)\nint (?P<name>\w+)\(', re.MULTILINE)
MAP = re.compile(r"^ZT_(?:MAP|RINGBUF)\((?P<arguments>.*?)\);$", re.MULTILINE | re.DOTALL)


def _check(source: Path, cwd: Path = BPF.parent) -> subprocess.CompletedProcess[str]:
    """Parse one file with the flags that editors read."""
    compiler = shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler; apt-get install gcc")
    argv = [compiler, f"@{BPF}/compile_flags.txt", "-Werror", "-fsyntax-only", str(source)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)


@pytest.mark.parametrize("source", [*ATTACH_POINTS, *HEADERS], ids=lambda path: path.name)
def test_source_parses_as_plain_c_without_warnings(source: Path) -> None:
    done = _check(source)
    assert (done.returncode, done.stderr) == (0, "")


def test_syntax_check_detects_an_undeclared_function(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    text = (BPF / "getsockname.c").read_text(encoding="utf-8")
    text = text.replace('#include "lib/', f'#include "{BPF}/lib/')
    source.write_text(text.replace("zt_pod_find(", "zt_pod_fnd("), encoding="utf-8")
    done = _check(source, tmp_path)
    assert done.returncode != 0
    assert "zt_pod_fnd" in done.stderr


def test_each_file_holds_the_programs_of_one_attach_point() -> None:
    found: list[str] = []
    for source in ATTACH_POINTS:
        programs = PROGRAM.findall(source.read_text(encoding="utf-8"))
        assert programs, source.name
        for section, name in programs:
            assert section.removeprefix("cgroup/").rstrip("46") == source.stem
            assert name == f"zt_{section.removeprefix('cgroup/')}"
        found += [name for _, name in programs]
    assert sorted(found) == sorted(NAMES)


def test_translation_unit_holds_every_source_once_in_order_of_inclusion() -> None:
    text = loader.translation_unit(BPF)
    assert '#include "' not in text
    for path in (*ATTACH_POINTS, *HEADERS):
        lines = path.read_text(encoding="utf-8").splitlines()
        body = "\n".join(line for line in lines if not line.startswith('#include "'))
        *_, longest = sorted(body.split("\n\n"), key=len)
        assert text.count(longest) == 1, path.name
    assert text.index("#define ZT_ABI ") < text.index("zt_pods,") < text.index("int zt_connect4(")


def test_fingerprint_covers_the_headers_in_the_subdirectory(tmp_path: Path) -> None:
    copy = tmp_path / "bpf"
    shutil.copytree(BPF, copy)
    before = loader.fingerprint(copy, tmp_path)
    header = copy / "lib" / "addr.h"
    header.write_text(header.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert loader.fingerprint(copy, tmp_path) != before


def test_names_remain_distinct_when_the_kernel_truncates_them() -> None:
    text = (BPF / "lib" / "maps.h").read_text(encoding="utf-8")
    maps = [
        next(word.strip() for word in arguments.split(",") if word.strip().startswith("zt_"))
        for arguments in MAP.findall(text)
    ]
    assert len(maps) == 25
    assert len({name[:KERNEL_NAME_BYTES] for name in maps}) == len(maps)
    assert all(len(name) <= KERNEL_NAME_BYTES for name in NAMES)
