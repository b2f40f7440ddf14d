# SPDX-License-Identifier: Apache-2.0
"""BPF links: pinned, so that programs remain attached after the loader exits.

An existing link is updated in place. A link whose target is gone is replaced.
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
    """Attach `program` to `target` and pin the link; True if a link was updated in place."""
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
    """Redirect inbound connections of a pod's netns. Idempotent. Raises OSError."""
    program = syscall.open_pinned(sk_lookup_pin(pin_dir))
    try:
        attach(pod_pin(pin_dir, cookie), program, netns_fd, AttachType.SK_LOOKUP)
    finally:
        os.close(program)


def detach_sk_lookup(pin_dir: Path, cookie: int) -> bool:
    """Undo `attach_sk_lookup`; False if there was no link.

    Detaches before it removes the pin: the kernel frees an unpinned link later, and until then the
    program would refuse connections, because the map no longer contains the listener.
    """
    path = pod_pin(pin_dir, cookie)
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
    """The netns cookies with a pinned sk_lookup link."""
    names = (path.name for path in (pin_dir / "links").glob(f"{_POD_PREFIX}*"))
    return sorted(int(name.removeprefix(_POD_PREFIX)) for name in names)


def sk_lookup_pin(pin_dir: Path) -> Path:
    """The pin of the program that `attach_sk_lookup` attaches."""
    return pin_dir / "progs" / SK_LOOKUP_PROGRAM


def is_pod_link(pin: Path) -> bool:
    """Whether a pin is that of a pod's sk_lookup link."""
    return pin.name.startswith(_POD_PREFIX)


def pod_pin(pin_dir: Path, cookie: int) -> Path:
    """The pin of the sk_lookup link of a pod's netns."""
    return pin_dir / "links" / f"{_POD_PREFIX}{cookie}"
