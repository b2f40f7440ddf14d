# SPDX-License-Identifier: Apache-2.0
"""Holds the pinned objects open, and pins them again if their pins are removed.

A program stays attached while its link exists, and a link exists while it is pinned or open.
Without the descriptors held here, the removal of the pins, for example by a cleaner of the node,
detaches every program, and pods send plaintext.

    pin refers to the held object         -> nothing to do
    pin is missing, the object is in use  -> pin it again
    pin is missing, the link is detached  -> a pod's link: its netns is gone; a hook's: error
    pin refers to another object          -> error: the agent uses maps that no program uses
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from ztunnel.datapath.bpf import links, syscall

KINDS = ("maps", "progs", "links")
_ID_OFFSET = 4  # id in struct bpf_map_info, bpf_prog_info and bpf_link_info, after the type
_LINK_TARGET = struct.Struct("=IIIIQ")  # type, id, prog_id, padding, cgroup_id or netns_ino
_INFO_BYTES = 64
_NETNS_INO_MASK = 0xFFFFFFFF  # netns_ino has 32 bits; attach_type follows

log = structlog.get_logger()


@dataclass(frozen=True)
class _Held:
    """A descriptor of a pinned object, and the ID that the kernel assigned to the object."""

    fd: int
    object_id: int


class HeldPins:
    """The objects under one pin directory. Raises OSError if they cannot be opened."""

    def __init__(self, pin_dir: Path) -> None:
        self.restored = 0  # pins that were created again
        self.errors: tuple[str, ...] = ()  # of the last reconciliation
        self._pin_dir = pin_dir
        self._held: dict[str, _Held] = {}  # by path below the pin directory
        try:
            self._hold_new()
        except OSError:
            self.close()
            raise

    def reconcile(self) -> None:
        """Compare all pins with the held objects, and restore missing pins. Sets `errors`."""
        before, restored = self.errors, self.restored
        errors: list[str] = []
        for name in list(self._held):
            try:
                self._reconcile_one(name, errors)
            except OSError as error:
                errors.append(f"{name}: not pinned: {error}")
        try:
            self._hold_new()
        except OSError as error:
            errors.append(f"pins not readable: {error}")
        self.errors = tuple(errors)
        if self.restored > restored:
            log.warning(
                "BPF pins restored",
                pins=self.restored - restored,
                pin_dir=str(self._pin_dir),
                hint="exclude this directory from cleaners of the node",
            )
        if self.errors and self.errors != before:
            log.error("BPF pins lost", pin_dir=str(self._pin_dir), errors=list(self.errors))

    def hold(self, pin: Path) -> None:
        """Hold the object of a new pin, at once instead of in the next reconciliation."""
        self.release(pin)
        self._open(str(pin.relative_to(self._pin_dir)))

    def restore(self, pin: Path) -> None:
        """Pin a held object again if its pin is missing. Raises OSError."""
        name = str(pin.relative_to(self._pin_dir))
        if name in self._held and not pin.exists():
            self._reconcile_one(name, [])

    def release(self, pin: Path) -> None:
        """Close the object of a pin that was removed on purpose."""
        held = self._held.pop(str(pin.relative_to(self._pin_dir)), None)
        if held is not None:
            os.close(held.fd)

    def close(self) -> None:
        """Close all descriptors; the pins remain."""
        for held in self._held.values():
            os.close(held.fd)
        self._held.clear()

    def _hold_new(self) -> None:
        """Hold every pin that is not held yet."""
        for kind in KINDS:
            for pin in sorted((self._pin_dir / kind).glob("*")):
                name = str(pin.relative_to(self._pin_dir))
                if name not in self._held:
                    with suppress(FileNotFoundError):  # removed just now
                        self._open(name)

    def _open(self, name: str) -> None:
        fd = syscall.open_pinned(self._pin_dir / name)
        try:
            self._held[name] = _Held(fd, _object_id(fd))
        except OSError:
            os.close(fd)
            raise

    def _reconcile_one(self, name: str, errors: list[str]) -> None:
        held, pin = self._held[name], self._pin_dir / name
        is_link = name.startswith("links/")
        if is_link and not _is_attached(held.fd):
            if links.is_pod_link(pin):
                self.release(pin)
            else:
                errors.append(f"{name}: detached; hint: restart the agent")
            return
        try:
            found = syscall.open_pinned(pin)
        except FileNotFoundError:
            pin.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            syscall.pin(held.fd, pin)
            self.restored += 1
            return
        try:
            if _object_id(found) != held.object_id:
                errors.append(f"{name}: replaced by another object; hint: restart the agent")
        finally:
            os.close(found)


def _object_id(fd: int) -> int:
    """The ID of a map, program or link."""
    (number,) = struct.unpack_from("=I", syscall.object_info(fd, _INFO_BYTES), _ID_OFFSET)
    return int(number)


def _is_attached(link: int) -> bool:
    """Whether the target of a link, a cgroup or a netns, still exists and has the link."""
    kind, _, _, _, target = _LINK_TARGET.unpack_from(syscall.object_info(link, _INFO_BYTES))
    if kind == syscall.LinkType.NETNS:
        target &= _NETNS_INO_MASK
    return bool(target)
