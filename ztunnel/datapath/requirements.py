# SPDX-License-Identifier: Apache-2.0
"""Requirements of the data path: facts about the node that the loader and `ztctl check` share.

Every function takes the root directory to read from, so that tests can present recorded layouts.
No function changes the machine.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
BPFFS = Path("/sys/fs/bpf")

_ARCH_DIRS = {"x86_64": "x86", "aarch64": "arm64", "riscv64": "riscv", "s390x": "s390"}
_CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}  # linux/capability.h


class RequirementError(Exception):
    """The node lacks `problem`, which the data path requires; `hint` is what to do."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(f"{problem}; hint: {hint}")
        self.problem = problem
        self.hint = hint


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo; `root` is the directory of the filesystem that is mounted."""

    root: str
    point: Path
    kind: str


@dataclass(frozen=True)
class Headers:
    """Kernel headers: the tree of a flavour and the common tree (often the same)."""

    build: Path
    source: Path


@dataclass(frozen=True)
class BpffsMount:
    """Whether a path is on a mounted bpffs, and the mount point."""

    mounted: bool
    point: Path


def mounts(root: Path = ROOT) -> list[Mount]:
    """All mounts of this process (format: proc(5), mountinfo)."""
    found = []
    text = (root / "proc/self/mountinfo").read_text(encoding="utf-8")
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) >= 5 and kind:
            found.append(Mount(_unescape(fields[3]), Path(_unescape(fields[4])), kind[0]))
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def cgroup2_root(root: Path = ROOT) -> Path:
    """The mount point of the cgroup v2 root, possibly a hybrid one (/sys/fs/cgroup/unified).

    A mount whose root is not `/` covers only a part of the hierarchy. Programs attached there would
    silently miss all other pods, so this raises RequirementError.
    """
    candidates = [mount for mount in mounts(root) if mount.kind == "cgroup2"]
    if not candidates:
        raise RequirementError(
            "no cgroup v2 mount found",
            "boot with systemd.unified_cgroup_hierarchy=1 "
            "or mount one: mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    whole = [mount for mount in candidates if mount.root == "/"]
    if not whole:
        raise RequirementError(
            f"the cgroup v2 mount {candidates[0].point} shows only {candidates[0].root}",
            "mount the host's cgroup root into this container",
        )
    if in_nested_cgroup_namespace(root) or _is_partial(whole[0].point, root):
        raise RequirementError(
            "this process is in a nested cgroup namespace, which hides the host's cgroup root",
            "run the agent in the host's cgroup namespace (hostPID and cgroupns=host)",
        )
    return whole[0].point


def in_nested_cgroup_namespace(root: Path = ROOT) -> bool:
    """Whether a process is outside of the visible root; its path then begins with `/..`."""
    own = _cgroup2_path(root / "proc/self/cgroup")
    init = _cgroup2_path(root / "proc/1/cgroup")
    return "/.." in own or "/.." in init


def contains_init_process(cgroup: Path, root: Path = ROOT) -> bool:
    """Whether the node's init process is in `cgroup`, so that hooks there see its sockets."""
    init = _cgroup2_path(root / "proc/1/cgroup")
    points = [each.point for each in mounts(root) if each.kind == "cgroup2" and each.root == "/"]
    return (
        bool(init)
        and ".." not in init
        and any((point / init.lstrip("/")).is_relative_to(cgroup) for point in points)
    )


def _is_partial(point: Path, root: Path) -> bool:
    """Every cgroup except the real root has this file, also if a namespace shows it as the root."""
    return (root / point.relative_to("/") / "cgroup.events").exists()


def _cgroup2_path(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return ""
    return next((line[3:] for line in text.splitlines() if line.startswith("0::")), "")


def bpffs_mount(path: Path = BPFFS, root: Path = ROOT) -> BpffsMount:
    """Whether `path` (which need not exist) is on a bpffs."""
    holding = [
        mount for mount in mounts(root) if path == mount.point or mount.point in path.parents
    ]
    if not holding:
        return BpffsMount(mounted=False, point=BPFFS)
    deepest = max(enumerate(holding), key=lambda item: (len(item[1].point.parts), item[0]))[1]
    return BpffsMount(mounted=deepest.kind == "bpf", point=deepest.point)


def header_arch(machine: str = "") -> str:
    """The kernel's directory name of this architecture, as in arch/x86."""
    machine = machine or platform.machine()
    return _ARCH_DIRS.get(machine, machine)


def kernel_headers(root: Path = ROOT, release: str = "") -> Headers | None:
    """Headers to compile with: the running kernel's if installed, else the newest.

    The programs use only UAPI types, so any version works. Debian splits its headers into a flavour
    tree and a -common tree; the result contains both.
    """
    release = release or platform.release()
    modules = root / "lib/modules" / release
    trees = [modules / "build", *_installed_trees(root)]
    for build in trees:
        headers = _completed(build, modules / "source")
        if headers is not None:
            return headers
    return None


def _installed_trees(root: Path) -> list[Path]:
    patterns = ("usr/src/linux-headers-*", "usr/src/kernels/*")
    found = [tree for pattern in patterns for tree in root.glob(pattern)]
    return sorted(found, key=_version, reverse=True)


def _version(tree: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", tree.name)]


def _completed(build: Path, source: Path) -> Headers | None:
    """`build` with the tree that contains the rest of its headers; None if one is missing."""
    if not (build / "include/generated/autoconf.h").is_file():
        return None
    build = build.resolve()
    for rest in (build, source, *_common_trees(build)):
        if (rest / "include/uapi/linux/bpf.h").is_file():
            return Headers(build, rest.resolve())
    return None


def _common_trees(build: Path) -> Iterator[Path]:
    """Debian's `…-6.1.0-9-cloud-amd64` belongs to `…-6.1.0-9-common`; Ubuntu uses no suffix."""
    stem, _, flavour = build.name.rpartition("-")
    while stem and not flavour.isdigit():
        yield build.with_name(f"{stem}-common")
        yield build.with_name(stem)
        stem, _, flavour = stem.rpartition("-")


def has_btf(root: Path = ROOT) -> bool:
    """Whether the kernel provides BTF; sk_storage maps need it."""
    return (root / "sys/kernel/btf/vmlinux").is_file()


def has_ipv6(root: Path = ROOT) -> bool:
    """Whether the kernel supports IPv6."""
    return (root / "proc/net/if_inet6").exists() or (root / "proc/sys/net/ipv6").is_dir()


def missing_capabilities(root: Path = ROOT) -> list[str]:
    """The names of the capabilities that the agent needs and this process lacks."""
    status = (root / "proc/self/status").read_text(encoding="ascii")
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
