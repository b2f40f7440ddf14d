# SPDX-License-Identifier: Apache-2.0
"""Requirements read from mount tables and header trees that were recorded on other machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.datapath import requirements

PURE_V2 = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
25 22 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
29 25 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
31 25 0:28 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime shared:11 - bpf bpf rw,mode=700
"""
HYBRID = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:28 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
"""
BIND_MOUNTED = """\
29 25 0:26 /kubepods/pod1/app /sys/fs/cgroup ro,nosuid,relatime - cgroup2 cgroup rw
"""
ONLY_V1 = """\
31 22 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
"""


def machine(
    tmp_path: Path, mountinfo: str, *, own: str = "0::/init.scope", init: str = "0::/init.scope"
) -> Path:
    """A root directory with the given mount table and cgroup paths."""
    write(tmp_path / "proc/self/mountinfo", mountinfo)
    write(tmp_path / "proc/self/cgroup", own + "\n")
    write(tmp_path / "proc/1/cgroup", init + "\n")
    return tmp_path


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_cgroup2_root_is_found_on_pure_v2(tmp_path: Path) -> None:
    assert requirements.cgroup2_root(machine(tmp_path, PURE_V2)) == Path("/sys/fs/cgroup")


def test_cgroup2_root_is_found_on_hybrid(tmp_path: Path) -> None:
    root = machine(tmp_path, HYBRID, own="9:name=systemd:/\n0::/", init="0::/")
    assert requirements.cgroup2_root(root) == Path("/sys/fs/cgroup/unified")


def test_mount_point_with_a_space_is_unescaped(tmp_path: Path) -> None:
    odd = PURE_V2.replace("/sys/fs/cgroup", "/mnt/my\\040cgroup")
    assert requirements.cgroup2_root(machine(tmp_path, odd)) == Path("/mnt/my cgroup")


def test_partial_cgroup2_mount_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(requirements.RequirementError, match="shows only /kubepods/pod1/app"):
        requirements.cgroup2_root(machine(tmp_path, BIND_MOUNTED))


def test_nested_cgroup_namespace_with_visible_init_is_rejected(tmp_path: Path) -> None:
    root = machine(tmp_path, PURE_V2, own="0::/", init="0::/../../../init.scope")
    with pytest.raises(requirements.RequirementError, match="nested cgroup namespace"):
        requirements.cgroup2_root(root)


def test_nested_cgroup_namespace_with_hidden_init_is_rejected(tmp_path: Path) -> None:
    """In a PID namespace every path is `/`, but only the real root lacks cgroup.events."""
    root = machine(tmp_path, PURE_V2, own="0::/", init="0::/")
    write(root / "sys/fs/cgroup/cgroup.events", "populated 1\nfrozen 0\n")
    with pytest.raises(requirements.RequirementError, match="nested cgroup namespace"):
        requirements.cgroup2_root(root)


def test_missing_cgroup2_mount_is_reported_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(requirements.RequirementError, match="mount -t cgroup2"):
        requirements.cgroup2_root(machine(tmp_path, ONLY_V1))


@pytest.mark.parametrize(
    ("init", "cgroup", "holds"),
    [
        ("0::/init.scope", "/sys/fs/cgroup", True),
        ("0::/", "/sys/fs/cgroup", True),
        ("0::/node1/system", "/sys/fs/cgroup/node1", True),
        ("0::/init.scope", "/sys/fs/cgroup/node1", False),
        ("0::/node10", "/sys/fs/cgroup/node1", False),
        ("0::/../../init.scope", "/sys/fs/cgroup", False),
        ("1:name=systemd:/", "/sys/fs/cgroup", False),
    ],
)
def test_init_process_is_found_below_the_cgroup(
    tmp_path: Path, init: str, cgroup: str, holds: bool
) -> None:
    root = machine(tmp_path, PURE_V2, init=init)
    assert requirements.contains_init_process(Path(cgroup), root) is holds


def test_missing_pin_directory_on_bpffs_is_recognized(tmp_path: Path) -> None:
    found = requirements.bpffs_mount(Path("/sys/fs/bpf/ztunnel"), machine(tmp_path, PURE_V2))
    assert found == requirements.BpffsMount(mounted=True, point=Path("/sys/fs/bpf"))


def test_missing_bpffs_is_recognized(tmp_path: Path) -> None:
    assert not requirements.bpffs_mount(root=machine(tmp_path, HYBRID)).mounted


def test_mount_over_the_bpffs_hides_it(tmp_path: Path) -> None:
    over = PURE_V2 + "40 31 0:50 / /sys/fs/bpf rw - tmpfs tmpfs rw\n"
    assert not requirements.bpffs_mount(root=machine(tmp_path, over)).mounted


def debian_headers(root: Path, version: str, flavour: str = "amd64") -> tuple[Path, Path]:
    """Debian's two trees: the generated headers of a flavour, and the common headers."""
    build = root / f"usr/src/linux-headers-{version}-{flavour}"
    common = root / f"usr/src/linux-headers-{version}-common"
    write(build / "include/generated/autoconf.h")
    write(common / "include/uapi/linux/bpf.h")
    return build, common


def test_split_debian_headers_are_found(tmp_path: Path) -> None:
    build, common = debian_headers(tmp_path, "6.1.0-9")
    (tmp_path / "lib/modules/6.1.0-9-amd64").mkdir(parents=True)
    (tmp_path / "lib/modules/6.1.0-9-amd64/build").symlink_to(build)
    found = requirements.kernel_headers(tmp_path, "6.1.0-9-amd64")
    assert found == requirements.Headers(build, common)


def test_cloud_flavour_uses_the_common_tree(tmp_path: Path) -> None:
    build, common = debian_headers(tmp_path, "6.1.0-9", "cloud-amd64")
    assert requirements.kernel_headers(tmp_path, "6.9.1") == requirements.Headers(build, common)


def test_newest_headers_are_used_if_those_of_the_kernel_are_missing(tmp_path: Path) -> None:
    debian_headers(tmp_path, "6.1.0-9")
    newest = debian_headers(tmp_path, "6.1.0-31")
    assert requirements.kernel_headers(tmp_path, "6.18.44-custom") == requirements.Headers(*newest)


def test_complete_tree_is_used_for_both_parts(tmp_path: Path) -> None:
    tree = tmp_path / "usr/src/kernels/6.12.0-1.el10.x86_64"
    write(tree / "include/generated/autoconf.h")
    write(tree / "include/uapi/linux/bpf.h")
    assert requirements.kernel_headers(tmp_path, "6.12.0-2") == requirements.Headers(tree, tree)


def test_split_ubuntu_headers_are_found(tmp_path: Path) -> None:
    build = tmp_path / "usr/src/linux-headers-6.8.0-51-generic"
    rest = tmp_path / "usr/src/linux-headers-6.8.0-51"
    write(build / "include/generated/autoconf.h")
    write(rest / "include/uapi/linux/bpf.h")
    assert requirements.kernel_headers(tmp_path, "6.8.0") == requirements.Headers(build, rest)


def test_incomplete_headers_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "usr/src/linux-headers-6.1.0-9-amd64/include/generated/autoconf.h")
    assert requirements.kernel_headers(tmp_path, "6.1.0-9-amd64") is None


def test_architecture_directories_have_the_names_of_the_kernel() -> None:
    known = [requirements.header_arch(name) for name in ("x86_64", "aarch64", "loongarch64")]
    assert known == ["x86", "arm64", "loongarch64"]


def test_missing_capabilities_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert requirements.missing_capabilities(tmp_path) == []
    write(tmp_path / "proc/self/status", f"Name:\tx\nCapEff:\t{1 << 12:016x}\n")
    assert requirements.missing_capabilities(tmp_path) == [
        "CAP_SYS_ADMIN",
        "CAP_PERFMON",
        "CAP_BPF",
    ]


def test_btf_and_ipv6_are_detected(tmp_path: Path) -> None:
    assert (requirements.has_btf(tmp_path), requirements.has_ipv6(tmp_path)) == (False, False)
    write(tmp_path / "sys/kernel/btf/vmlinux")
    write(tmp_path / "proc/net/if_inet6")
    assert (requirements.has_btf(tmp_path), requirements.has_ipv6(tmp_path)) == (True, True)
