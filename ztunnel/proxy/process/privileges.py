# SPDX-License-Identifier: Apache-2.0
"""Drops every privilege and verifies it: a compromised proxy must not be root on the node.

Call `drop` after all imports and before any input is read. It works as root and as any user.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_LINUX_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_LAST_CAP = 63

MAX_OPEN_FILES = 1 << 20  # the default of the sysctl fs.nr_open

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """A privilege remains; the process must not continue."""


def drop(uid: int) -> None:
    """Switch to `uid` and the group of the same number, and drop all capabilities irrevocably.

    Raises PrivilegeError if /proc/self/status still shows a capability.
    """
    _raise_file_limit()
    started_as_root = os.geteuid() == 0
    if started_as_root:
        _empty_bounding_set()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)  # clears permitted and effective sets
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _clear_capability_sets()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)  # no ptrace and no core dump: they would expose keys
    _verify(started_as_root)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(MAX_OPEN_FILES, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):  # not root, or a lower fs.nr_open
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _empty_bounding_set() -> None:
    for capability in range(_LAST_CAP + 1):
        if _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            _prctl(_PR_CAPBSET_DROP, capability)


def _clear_capability_sets() -> None:
    """Clear all sets by capset(2), also the inheritable one, which setresuid(2) leaves alone."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    number = _SYS_CAPSET.get(os.uname().machine)
    if number is None:
        return  # `_verify` fails if a capability remains
    if _libc.syscall(number, header, data) != 0:
        raise PrivilegeError(f"capset failed: {os.strerror(ctypes.get_errno())}")


def _verify(started_as_root: bool) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if ":\t" in line
    )
    # Only root can clear the bounding set. With no_new_privs it has no effect.
    checked = ["CapInh", "CapPrm", "CapEff", "CapAmb"] + ["CapBnd"] * started_as_root
    left = [f"{name}={status[name]}" for name in checked if int(status[name], 16)]
    if left or status["NoNewPrivs"] != "1":
        raise PrivilegeError(
            f"dropped all privileges, but /proc/self/status still shows {', '.join(left)}"
            f" (NoNewPrivs={status['NoNewPrivs']}); hint: start the proxy as root or as a user"
            " without capabilities"
        )


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        error = os.strerror(ctypes.get_errno())
        raise PrivilegeError(f"prctl({option}, {argument}) failed: {error}")
