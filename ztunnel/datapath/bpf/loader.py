# SPDX-License-Identifier: Apache-2.0
"""Compiles bpf/ with BCC, attaches the programs to a cgroup and pins them.

Runs as its own short-lived process (`ztunnel loader`), so that the agent does not retain LLVM's
memory. Pinned maps are reused and pinned links are updated in place.

    nothing pinned   -> compile; create and pin links
    same fingerprint -> adopt: nothing to do
    other programs   -> compile with the pinned maps; update links in place
    other ABI        -> fail: the maps have other names or shapes
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ztunnel.datapath import requirements
from ztunnel.datapath.bpf import layout, links, syscall
from ztunnel.datapath.bpf.syscall import AttachType, ProgramType, RawMap

DEFAULT_PIN_DIR = Path("/sys/fs/bpf/ztunnel")
_INCLUDE = re.compile(r'#include "([^"]+)"')
_MAP = re.compile(r'^ZT_(?:MAP\("\w+",[^,]+,[^,]+,\s*|RINGBUF\()(\w+),', re.MULTILINE)
_META_KEY = bytes(4)
_META_BYTES = len(bytes(layout.Meta()))


@dataclass(frozen=True)
class Hook:
    """A program of bpf/ and its attach point."""

    program: str
    kind: ProgramType
    attach: AttachType


CGROUP_HOOKS = (
    Hook("zt_sockops", ProgramType.SOCK_OPS, AttachType.SOCK_OPS),
    Hook("zt_getsockopt", ProgramType.CGROUP_SOCKOPT, AttachType.GETSOCKOPT),
    Hook("zt_setsockopt", ProgramType.CGROUP_SOCKOPT, AttachType.SETSOCKOPT),
    Hook("zt_getpeername4", ProgramType.CGROUP_SOCK_ADDR, AttachType.GETPEERNAME4),
    Hook("zt_getpeername6", ProgramType.CGROUP_SOCK_ADDR, AttachType.GETPEERNAME6),
    Hook("zt_getsockname4", ProgramType.CGROUP_SOCK_ADDR, AttachType.GETSOCKNAME4),
    Hook("zt_getsockname6", ProgramType.CGROUP_SOCK_ADDR, AttachType.GETSOCKNAME6),
    Hook("zt_recvmsg4", ProgramType.CGROUP_SOCK_ADDR, AttachType.UDP4_RECVMSG),
    Hook("zt_recvmsg6", ProgramType.CGROUP_SOCK_ADDR, AttachType.UDP6_RECVMSG),
    # Last: connections that these redirect depend on all programs above.
    Hook("zt_connect4", ProgramType.CGROUP_SOCK_ADDR, AttachType.CONNECT4),
    Hook("zt_connect6", ProgramType.CGROUP_SOCK_ADDR, AttachType.CONNECT6),
    Hook("zt_sendmsg4", ProgramType.CGROUP_SOCK_ADDR, AttachType.UDP4_SENDMSG),
    Hook("zt_sendmsg6", ProgramType.CGROUP_SOCK_ADDR, AttachType.UDP6_SENDMSG),
)
SK_LOOKUP = Hook(links.SK_LOOKUP_PROGRAM, ProgramType.SK_LOOKUP, AttachType.SK_LOOKUP)


class LoadError(Exception):
    """The data path could not be loaded; the message contains a hint."""


def source_dir() -> Path:
    """The directory of the C sources: next to the package in a checkout, inside it if installed."""
    package = Path(__file__).resolve().parents[2]
    for candidate in (package / "bpf", package.parent / "bpf"):
        if (candidate / "lib" / "maps.h").is_file():
            return candidate
    raise LoadError(f"bpf/lib/maps.h not found in {package} or next to it; hint: reinstall ztunnel")


def fingerprint(sources: Path, cgroup: Path) -> bytes:
    """SHA-256 of everything that determines the programs: sources, kernel and target cgroup."""
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*.[ch]")):
        name = str(path.relative_to(sources))
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(platform.release().encode())
    digest.update(str(cgroup.stat().st_ino).encode())  # the cgroup id
    return digest.digest()


def pinned_meta(pin_dir: Path) -> layout.Meta | None:
    """The metadata of the pinned programs; None if nothing is pinned."""
    try:
        table = RawMap.open(pin_dir / "maps" / "zt_meta", 4, _META_BYTES, read_only=True)
    except FileNotFoundError:
        return None
    try:
        raw = table.lookup(_META_KEY)
    finally:
        table.close()
    return layout.Meta.from_buffer_copy(raw) if raw else None


def load(cgroup: Path, pin_dir: Path) -> str:
    """Bring the pinned data path up to date; returns "adopted", "updated" or "loaded"."""
    if not (cgroup / "cgroup.procs").is_file():
        raise LoadError(f"{cgroup} is not a cgroup v2 directory; hint: run `ztctl check`")
    _require_bpffs(pin_dir)
    wanted = fingerprint(source_dir(), cgroup)
    meta = pinned_meta(pin_dir)
    if meta is not None and meta.abi not in (0, layout.ABI_VERSION):
        raise LoadError(
            f"{pin_dir} contains maps of ABI {meta.abi}, but this build uses {layout.ABI_VERSION}; "
            "hint: drain the node and run `ztctl uninstall` first"
        )
    if meta is not None and bytes(meta.fingerprint) == wanted and _complete(pin_dir):
        return "adopted"
    for name in ("maps", "progs", "links"):
        (pin_dir / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    programs = _compile(pin_dir)
    try:
        updated = _attach_all(programs, cgroup, pin_dir)
    finally:
        for program in programs.values():
            os.close(program)
    _write_meta(pin_dir, wanted)
    return "updated" if updated else "loaded"


def _require_bpffs(pin_dir: Path) -> None:
    found = requirements.bpffs_mount(pin_dir)
    if not found.mounted:
        raise LoadError(f"{pin_dir} is not on a bpffs; hint: mount -t bpf bpf /sys/fs/bpf")


def _complete(pin_dir: Path) -> bool:
    pins = [
        Path("progs", SK_LOOKUP.program),
        *(Path("links", hook.program) for hook in CGROUP_HOOKS),
        *(Path("maps", name) for name in map_names(source_dir())),
    ]
    return all((pin_dir / pin).exists() for pin in pins)


def map_names(sources: Path) -> list[str]:
    """The names of all maps, which are the names of their pins."""
    return _MAP.findall((sources / "lib" / "maps.h").read_text(encoding="utf-8"))


def _compile(pin_dir: Path) -> dict[str, int]:
    """Compile and load all programs; returns descriptors by name. BCC pins the maps."""
    try:
        from bcc import BPF  # noqa: PLC0415  loads 60 MB of LLVM
    except ImportError as error:
        raise LoadError(
            "BCC is not installed for this Python; hint: apt-get install python3-bpfcc"
        ) from error
    sources = source_dir()
    flags = ["-DZT_BCC", f'-DZT_PIN="{pin_dir}"', "-Wno-macro-redefined"]
    with _headers():
        try:
            module = BPF(text=translation_unit(sources).encode(), cflags=flags)
            try:
                return {
                    hook.program: os.dup(
                        module.load_func(
                            hook.program.encode(), int(hook.kind), None, int(hook.attach)
                        ).fd
                    )
                    for hook in (*CGROUP_HOOKS, SK_LOOKUP)
                }
            finally:
                module.cleanup()  # closes its descriptors
        except Exception as error:  # BCC raises bare Exception
            raise LoadError(f"BCC could not load {sources}: {error}") from error


def translation_unit(sources: Path) -> str:
    """All sources as one text; each `#include "..."` is replaced by the file, once.

    The programs share maps, and BCC rewrites map accesses only in its main file.
    """
    included: set[Path] = set()

    def expand(path: Path) -> Iterator[str]:
        if path in included:
            return
        included.add(path)
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := _INCLUDE.fullmatch(line):
                yield from expand((path.parent / match[1]).resolve())
            else:
                yield line

    lines = [line for source in sorted(sources.glob("*.c")) for line in expand(source.resolve())]
    return "\n".join([*lines, ""])


@contextmanager
def _headers() -> Iterator[None]:
    """Point BCC to kernel headers; Debian's two trees are merged into one by symlinks."""
    found = requirements.kernel_headers()
    if found is None:
        raise LoadError(
            "no kernel headers found; hint: install them in any version, for example "
            "apt-get install linux-headers-amd64"
        )
    with tempfile.TemporaryDirectory(prefix="zt-headers-") as tree:
        arch = requirements.header_arch()
        for part in ("include", f"arch/{arch}/include"):
            merged = Path(tree, part)
            merged.mkdir(parents=True)
            for headers in (found.build, found.source):
                _link_entries(headers / part, merged)
        os.environ["BCC_KERNEL_SOURCE"] = tree
        yield


def _link_entries(tree: Path, into: Path) -> None:
    if not tree.is_dir():
        return
    for entry in tree.iterdir():
        link = into / entry.name
        if not link.is_symlink():
            link.symlink_to(entry.resolve())


def _attach_all(programs: dict[str, int], cgroup: Path, pin_dir: Path) -> bool:
    """Pin and attach the programs; returns whether links existed."""
    target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, program in programs.items():
            pin = pin_dir / "progs" / name
            pin.unlink(missing_ok=True)
            syscall.pin(program, pin)
        updated = [
            links.attach(
                pin_dir / "links" / hook.program, programs[hook.program], target, hook.attach
            )
            for hook in CGROUP_HOOKS
        ]
        for pin in (pin_dir / "links").glob("sk_lookup_*"):
            _update_or_drop(pin, programs[SK_LOOKUP.program])
        return any(updated)
    finally:
        os.close(target)


def _update_or_drop(pin: Path, program: int) -> None:
    link = syscall.open_pinned(pin)
    try:
        syscall.link_update(link, program)
    except OSError:  # its netns is gone
        pin.unlink()
    finally:
        os.close(link)


def _write_meta(pin_dir: Path, wanted: bytes) -> None:
    meta = layout.Meta(abi=layout.ABI_VERSION)
    meta.fingerprint[:] = wanted
    table = RawMap.open(pin_dir / "maps" / "zt_meta", 4, _META_BYTES, read_only=False)
    try:
        table.update(_META_KEY, bytes(meta))
    finally:
        table.close()
