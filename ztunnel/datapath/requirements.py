# SPDX-License-Identifier: Apache-2.0
"""What this node has for us: facts that the loader and `ztctl check` share.

Every function takes the root directory it looks under, so that tests can show it other people's
layouts. Nothing here changes the machine.
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
    """A line of /proc/self/mountinfo: `root` is the part of the filesystem that is seen."""

    root: str
    point: Path
    kind: str


@dataclass(frozen=True)
class Headers:
    """Kernel headers: the tree built for a flavour and the common tree (often the same)."""

    build: Path
    source: Path


@dataclass(frozen=True)
class BpffsMount:
    """Whether a path lies on a mounted bpffs, and where that is mounted."""

    mounted: bool
    point: Path


def mounts(root: Path = ROOT) -> list[Mount]:
    """All mounts this process sees (format: proc(5), mountinfo)."""
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
    """The mount of the real cgroup v2 root.

    It may be a hybrid mount (/sys/fs/cgroup/unified). A mount whose root is not `/` shows only
    a part: attaching there would silently miss every other pod, so it is refused.
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
    if in_nested_cgroup_namespace(root) or _is_a_part(whole[0].point, root):
        raise RequirementError(
            "this process is in a nested cgroup namespace, which hides the host's cgroup root",
            "run the agent in the host's cgroup namespace (hostPID and cgroupns=host)",
        )
    return whole[0].point


def in_nested_cgroup_namespace(root: Path = ROOT) -> bool:
    """Whether some process is seen outside the visible root: its path then begins with `/..`."""
    own = _cgroup2_path(root / "proc/self/cgroup")
    init = _cgroup2_path(root / "proc/1/cgroup")
    return "/.." in own or "/.." in init


def contains_init_process(cgroup: Path, root: Path = ROOT) -> bool:
    """Whether the node's first process is below `cgroup`, so that hooks there see all it does."""
    init = _cgroup2_path(root / "proc/1/cgroup")
    points = [each.point for each in mounts(root) if each.kind == "cgroup2" and each.root == "/"]
    return (
        bool(init)
        and ".." not in init
        and any((point / init.lstrip("/")).is_relative_to(cgroup) for point in points)
    )


def _is_a_part(point: Path, root: Path) -> bool:
    """Every cgroup but the real root has this file, whatever a namespace calls it."""
    return (root / point.relative_to("/") / "cgroup.events").exists()


def _cgroup2_path(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return ""
    return next((line[3:] for line in text.splitlines() if line.startswith("0::")), "")


def bpffs_mount(path: Path = BPFFS, root: Path = ROOT) -> BpffsMount:
    """Whether `path` (which need not exist) lies on a bpffs."""
    holding = [
        mount for mount in mounts(root) if path == mount.point or mount.point in path.parents
    ]
    if not holding:
        return BpffsMount(mounted=False, point=BPFFS)
    deepest = max(enumerate(holding), key=lambda item: (len(item[1].point.parts), item[0]))[1]
    return BpffsMount(mounted=deepest.kind == "bpf", point=deepest.point)


def header_arch(machine: str = "") -> str:
    """The kernel's name of this architecture's directory, as in arch/x86."""
    machine = machine or platform.machine()
    return _ARCH_DIRS.get(machine, machine)


def kernel_headers(root: Path = ROOT, release: str = "") -> Headers | None:
    """Headers to compile with: the running kernel's if there, else the newest installed.

    Our programs use UAPI types only, so any version serves. Debian splits its headers in a
    flavour tree and a -common tree; both come back.
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
    """`build` with the tree that has the rest of its headers; None when either lacks."""
    if not (build / "include/generated/autoconf.h").is_file():
        return None
    build = build.resolve()
    for rest in (build, source, *_common_trees(build)):
        if (rest / "include/uapi/linux/bpf.h").is_file():
            return Headers(build, rest.resolve())
    return None


def _common_trees(build: Path) -> Iterator[Path]:
    """Debian's `…-6.1.0-9-cloud-amd64` goes with `…-6.1.0-9-common`; Ubuntu's has no suffix."""
    stem, _, flavour = build.name.rpartition("-")
    while stem and not flavour.isdigit():
        yield build.with_name(f"{stem}-common")
        yield build.with_name(stem)
        stem, _, flavour = stem.rpartition("-")


def has_btf(root: Path = ROOT) -> bool:
    """Whether the kernel describes its own types; sk_storage maps need it."""
    return (root / "sys/kernel/btf/vmlinux").is_file()


def has_ipv6(root: Path = ROOT) -> bool:
    """Whether the kernel has IPv6."""
    return (root / "proc/net/if_inet6").exists() or (root / "proc/sys/net/ipv6").is_dir()


def missing_capabilities(root: Path = ROOT) -> list[str]:
    """Which capabilities the agent needs and this process lacks, by name."""
    status = (root / "proc/self/status").read_text(encoding="ascii")
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
