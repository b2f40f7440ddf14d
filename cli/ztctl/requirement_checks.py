# SPDX-License-Identifier: Apache-2.0
"""The single checks of `ztctl check`: each finds one thing and knows its mend."""

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

KERNEL = (5, 18)  # bpf_set_retval; the youngest helper our programs call
BCC = "apt-get install python3-bpfcc, and let this Python see it (scripts/setup does both)"


class Status(StrEnum):
    """How a check ended; only `FAIL` makes the command fail."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Result:
    """One line of `ztctl check`. `mend` is empty unless there is something to do."""

    check: str
    status: Status
    found: str
    mend: str = ""


def facts() -> Iterator[Result]:
    """What can be seen without changing anything."""
    for check in _CHECKS:
        yield check()


def ready_to_load(results: list[Result]) -> bool:
    """Whether it makes sense to load the programs: nothing they need failed."""
    return all(result.status is not Status.FAIL for result in results)


def _judge(name: str, ok: bool, found: str, mend: str, bad: Status = Status.FAIL) -> Result:
    return Result(name, Status.OK if ok else bad, found, "" if ok else mend)


def kernel(release: str = "") -> Result:
    """A warning only: distributions backport, and loading the programs decides."""
    release = release or platform.release()
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    wanted = ".".join(map(str, KERNEL))
    mend = f"boot Linux {wanted} or newer, unless the programs below load"
    return _judge("kernel", numbers >= KERNEL, release, mend, Status.WARN)


def _capabilities() -> Result:
    missing = requirements.missing_capabilities()
    found = f"missing {', '.join(missing)}" if missing else "all there"
    return _judge("capabilities", not missing, found, "run as root: sudo ztctl check")


def _cgroup() -> Result:
    try:
        root = requirements.cgroup2_root()
    except (requirements.PreflightError, OSError) as error:
        found, _, mend = str(error).partition("; ")
        return Result("cgroup v2 root", Status.FAIL, found, mend)
    if not os.access(root, os.W_OK):
        mend = "mount it read-write, and run as root"
        return Result("cgroup v2 root", Status.FAIL, f"{root} is not writable", mend)
    return Result("cgroup v2 root", Status.OK, str(root))


def _bpffs() -> Result:
    found = requirements.bpffs()
    where = f"mounted at {found.point}" if found.mounted else f"none at {requirements.BPFFS}"
    return _judge("bpffs", found.mounted, where, f"mount -t bpf bpf {requirements.BPFFS}")


def _btf() -> Result:
    found = "/sys/kernel/btf/vmlinux" if requirements.btf() else "no /sys/kernel/btf/vmlinux"
    return _judge("BTF", requirements.btf(), found, "boot a kernel with CONFIG_DEBUG_INFO_BTF=y")


def bcc() -> Result:
    """Looks only: importing it would bring LLVM into this process."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return Result("BCC", Status.FAIL, "this Python has no module bcc", BCC)
    package = Path(spec.origin).parent
    if not (package / "libbcc.py").exists():
        found = f"{package} is another project (PyPI's bcc)"
        return Result("BCC", Status.FAIL, found, f"pip uninstall bcc; {BCC}")
    return Result("BCC", Status.OK, str(package.resolve()))


def _headers() -> Result:
    found = requirements.kernel_headers()
    mend = "apt-get install linux-headers-amd64 (or your architecture's); any version serves"
    if found is None:
        return Result("kernel headers", Status.FAIL, "none found", mend)
    trees = dict.fromkeys((str(found.build), str(found.source)))
    return Result("kernel headers", Status.OK, " + ".join(trees))


def _ipv6() -> Result:
    found = "there" if requirements.ipv6() else "the kernel has none: pods get IPv4 only"
    mend = "boot without ipv6.disable=1, if pods have IPv6 addresses"
    return _judge("IPv6", requirements.ipv6(), found, mend, Status.WARN)


def openssl() -> Result:
    """The OpenSSL of the proxy is not the system's: decision 0023."""
    from cryptography.hazmat.backends.openssl.backend import backend  # noqa: PLC0415  # it takes long

    return Result("OpenSSL", Status.INFO, backend.openssl_version_text().removeprefix("OpenSSL "))


def _compiled() -> Result:
    if compiled.current() is not None:
        return Result("compiled data plane", Status.INFO, "there; the proxy uses it")
    found = "not there; the proxy runs its sources, as always works"
    return Result("compiled data plane", Status.INFO, found)


_CHECKS: tuple[Callable[[], Result], ...] = (
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
