# SPDX-License-Identifier: Apache-2.0
"""Removes an installation from this machine: BPF links, programs, maps and the run directory."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ztctl.errors import CommandError
from ztctl.targets import Target
from ztunnel.datapath import requirements
from ztunnel.datapath.bpf import syscall

_SOCKETS = {"admin.sock": socket.SOCK_STREAM, "agent.sock": socket.SOCK_SEQPACKET}
_PIN_KINDS = ("links", "progs", "maps")  # links first: only they have an effect on traffic
_FIRST_LINK = "zt_connect"  # redirects stop before the programs that support them are gone
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid


def require_stopped(target: Target) -> None:
    """Raise CommandError if an agent still runs: it would continue without its maps."""
    for name, kind in _SOCKETS.items():
        path = target.run_dir / name
        pid = _listener_pid(path, kind)
        if pid is not None:
            stop = f"ztctl lab down --name {target.lab}" if target.lab else "stop it, then retry"
            raise CommandError(
                f"cannot uninstall: the agent of {target.node}, process {pid}, listens at {path}; "
                f"hint: {stop}"
            )


def remove(target: Target) -> Iterator[tuple[str, Path]]:
    """Remove everything of one node. Yields the kind and path of each item that was removed."""
    yield from _remove_pins(target.pin_dir)
    yield from _remove_run_dir(target.run_dir)


def _listener_pid(path: Path, kind: socket.SocketKind) -> int | None:
    """The process that listens at a unix socket."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return None
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[0])


def _remove_pins(pin_dir: Path) -> Iterator[tuple[str, Path]]:
    if not pin_dir.exists():
        return
    if (
        not requirements.bpffs_mount(pin_dir).mounted
        or pin_dir == requirements.bpffs_mount(pin_dir).point
    ):
        raise CommandError(
            f"{pin_dir} is not a directory inside a bpffs; hint: set another --pin-dir"
        )
    for kind in _PIN_KINDS:
        directory = pin_dir / kind
        pins = directory.glob("*")
        for pin in sorted(pins, key=lambda pin: not pin.name.startswith(_FIRST_LINK)):
            if kind == "links":
                _detach(pin)
            pin.unlink(missing_ok=True)
            yield kind.removesuffix("s"), pin
        if directory.exists():
            directory.rmdir()
    pin_dir.rmdir()
    yield "directory", pin_dir


def _detach(pin: Path) -> None:
    """Detach a link at once. Unpinning alone does not, if another process has the link open."""
    link = syscall.open_pinned(pin)
    try:
        syscall.link_detach(link)
    finally:
        os.close(link)


def _remove_run_dir(run_dir: Path) -> Iterator[tuple[str, Path]]:
    """Remove only files of ztunnel: the directory may contain others."""
    if not run_dir.is_dir():
        return
    for pattern in ("*.sock", "*.lock", "*.log"):
        for path in sorted(run_dir.glob(pattern)):
            path.unlink(missing_ok=True)
            yield "file", path
    with suppress(OSError):  # it contains other files
        run_dir.rmdir()
        yield "directory", run_dir
