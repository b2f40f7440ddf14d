# SPDX-License-Identifier: Apache-2.0
"""BPF links: attached by a pinned name, so they outlive the process that made them.

A link is updated in place, and made anew when its target has gone.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ztunnel.datapath.bpf import syscall
from ztunnel.datapath.bpf.syscall import AttachType

SK_LOOKUP_PROGRAM = "zt_sk_lookup"
_POD_PREFIX = "sk_lookup_"


def attach(pin: Path, program: int, target: int, kind: AttachType) -> bool:
    """Attach `program` to `target` under the name `pin`; True when a link was updated in place."""
    try:
        link = syscall.open_pinned(pin)
    except FileNotFoundError:
        link = None
    if link is not None:
        try:
            syscall.link_update(link, program)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOLINK, errno.EINVAL):
                raise
            pin.unlink()
        finally:
            os.close(link)
    link = syscall.link_create(program, target, kind)
    try:
        syscall.pin(link, pin)
    finally:
        os.close(link)
    return False


def attach_sk_lookup(pin_dir: Path, netns_fd: int, cookie: int) -> None:
    """Steal inbound connections of a pod's netns. Idempotent."""
    program = syscall.open_pinned(pin_dir / "progs" / SK_LOOKUP_PROGRAM)
    try:
        attach(_pod_pin(pin_dir, cookie), program, netns_fd, AttachType.SK_LOOKUP)
    finally:
        os.close(program)


def detach_sk_lookup(pin_dir: Path, cookie: int) -> bool:
    """Undo `attach_sk_lookup`; False when there was no link.

    Detached first: the kernel frees an unlinked pin's link some time later, and until then it
    would refuse connections whose listener is gone from the map.
    """
    path = _pod_pin(pin_dir, cookie)
    try:
        link = syscall.open_pinned(path)
    except FileNotFoundError:
        return False
    try:
        syscall.link_detach(link)
    finally:
        os.close(link)
    path.unlink(missing_ok=True)
    return True


def sk_lookup_cookies(pin_dir: Path) -> list[int]:
    """The netns cookies that have an sk_lookup link pinned."""
    names = (path.name for path in (pin_dir / "links").glob(f"{_POD_PREFIX}*"))
    return sorted(int(name.removeprefix(_POD_PREFIX)) for name in names)


def _pod_pin(pin_dir: Path, cookie: int) -> Path:
    return pin_dir / "links" / f"{_POD_PREFIX}{cookie}"
