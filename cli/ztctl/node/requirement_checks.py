# SPDX-License-Identifier: Apache-2.0
"""The checks of `ztctl check`: each examines one requirement, and has a hint if it is not met."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ztunnel import compiled
from ztunnel.datapath import requirements

MIN_KERNEL = (5, 18)  # bpf_set_retval, the most recent helper that the BPF programs call
_BCC_HINT = "apt-get install python3-bpfcc, and make it visible to this Python (see scripts/setup)"


class Status(StrEnum):
    """The status of a check. Only `FAIL` makes the command fail."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class CheckResult:
    """One row of `ztctl check`. `hint` is empty unless there is something to fix."""

    check: str
    status: Status
    result: str
    hint: str = ""


def run_checks() -> Iterator[CheckResult]:
    """Run all checks. They change nothing on the machine."""
    for check in _CHECKS:
        yield check()


def can_load(results: list[CheckResult]) -> bool:
    """Whether it makes sense to load the BPF programs: no requirement is missing."""
    return all(result.status is not Status.FAIL for result in results)


def _check(
    name: str, is_met: bool, result: str, hint: str, otherwise: Status = Status.FAIL
) -> CheckResult:
    return CheckResult(name, Status.OK if is_met else otherwise, result, "" if is_met else hint)


def kernel(release: str = "") -> CheckResult:
    """Only warns: distributions backport features, and loading the programs is the proof."""
    release = release or platform.release()
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    minimum = ".".join(map(str, MIN_KERNEL))
    hint = f"boot Linux {minimum} or later, unless the programs below load"
    return _check("kernel", version >= MIN_KERNEL, release, hint, Status.WARN)


def _capabilities() -> CheckResult:
    missing = requirements.missing_capabilities()
    result = f"missing {', '.join(missing)}" if missing else "available"
    return _check("capabilities", not missing, result, "run as root: sudo ztctl check")


def _cgroup() -> CheckResult:
    name = "cgroup v2 root"
    try:
        root = requirements.cgroup2_root()
    except requirements.RequirementError as error:
        return CheckResult(name, Status.FAIL, error.problem, error.hint)
    except OSError as error:
        return CheckResult(name, Status.FAIL, str(error), "mount /proc")
    if not os.access(root, os.W_OK):
        hint = "mount it read-write, and run as root"
        return CheckResult(name, Status.FAIL, f"{root} is not writable", hint)
    return CheckResult(name, Status.OK, str(root))


def _bpffs() -> CheckResult:
    bpffs = requirements.bpffs_mount()
    result = f"mounted at {bpffs.point}" if bpffs.mounted else f"not mounted: {requirements.BPFFS}"
    return _check("bpffs", bpffs.mounted, result, f"mount -t bpf bpf {requirements.BPFFS}")


def _btf() -> CheckResult:
    has_btf = requirements.has_btf()
    result = "/sys/kernel/btf/vmlinux" if has_btf else "/sys/kernel/btf/vmlinux does not exist"
    return _check("BTF", has_btf, result, "boot a kernel with CONFIG_DEBUG_INFO_BTF=y")


def bcc() -> CheckResult:
    """Finds the package without importing it, which would load LLVM into this process."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return CheckResult("BCC", Status.FAIL, "no Python module bcc", _BCC_HINT)
    package = Path(spec.origin).parent
    if not (package / "libbcc.py").exists():
        result = f"{package} is another project (PyPI's bcc)"
        return CheckResult("BCC", Status.FAIL, result, f"pip uninstall bcc; {_BCC_HINT}")
    return CheckResult("BCC", Status.OK, str(package.resolve()))


def _headers() -> CheckResult:
    headers = requirements.kernel_headers()
    if headers is None:
        hint = "apt-get install linux-headers-amd64, or your architecture's; any version works"
        return CheckResult("kernel headers", Status.FAIL, "not found", hint)
    trees = dict.fromkeys((str(headers.build), str(headers.source)))
    return CheckResult("kernel headers", Status.OK, " + ".join(trees))


def _ipv6() -> CheckResult:
    has_ipv6 = requirements.has_ipv6()
    result = "available" if has_ipv6 else "not available in the kernel: pods are IPv4-only"
    hint = "boot without ipv6.disable=1, if pods have IPv6 addresses"
    return _check("IPv6", has_ipv6, result, hint, Status.WARN)


def openssl() -> CheckResult:
    """The proxy's OpenSSL, which is not the system's: decision 0023."""
    from cryptography.hazmat.backends.openssl.backend import (  # noqa: PLC0415  slow to import
        backend,
    )

    version = backend.openssl_version_text().removeprefix("OpenSSL ")
    return CheckResult("OpenSSL", Status.INFO, version)


def _compiled() -> CheckResult:
    is_compiled = compiled.available() is not None
    result = "available" if is_compiled else "not available: the proxy runs as interpreted Python"
    return CheckResult("compiled data plane", Status.INFO, result)


_CHECKS: tuple[Callable[[], CheckResult], ...] = (
    kernel,
    _capabilities,
    _cgroup,
    _bpffs,
    _btf,
    bcc,
    _headers,
    _ipv6,
    openssl,
    _compiled,
)
