# SPDX-License-Identifier: Apache-2.0
"""`ztctl uninstall`: from this machine links, programs, maps, run directory; or from a cluster."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import click

from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError
from ztctl.manifests import Object, title
from ztctl.output import Column, Format, Row
from ztctl.targets import Installation
from ztunnel.datapath import requirements
from ztunnel.datapath.bpf import syscall

COLUMNS = (Column("NODE", "node"), Column("REMOVED", "removed"), Column("PATH", "path"))
SOCKETS = ("admin.sock", "agent.sock")
_PINNED = ("links", "progs", "maps")  # links first: they are what acts
_FIRST = "zt_connect"  # no redirect must outlive the programs that explain it
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid


@click.command()
@click.option(
    "--keep-nodes",
    is_flag=True,
    help="From a cluster: leave the nodes' kernels as they are; their captured pods are refused.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="From a cluster: seconds for each step on the nodes.",
)
@target_options
@output_option
@click.pass_obj
def uninstall(context: Context, *, keep_nodes: bool, timeout: float) -> None:
    """Remove ztunnel from this machine, or with --kubeconfig or --context from a cluster.

    From a machine: all that an installation left in the kernel, and its run directory. The agent
    must be stopped first, as it would go on with what is gone. A lab is better removed by: ztctl
    lab down.

    From a cluster: what `ztctl install` made. Each node's kernel is cleaned while its proxy still
    carries, so no connection of a pod is refused meanwhile; new connections are plain from then on.
    Policies and the definitions of their kinds stay.

    Safe to repeat.

    \b
    Examples:
      ztctl uninstall
      ztctl uninstall --context my-cluster
      ztctl uninstall --pin-dir /sys/fs/bpf/ztunnel --run-dir /run/ztunnel
    """
    if context.selection.names_cluster:
        _from_cluster(context, timeout, nodes=not keep_nodes)
    else:
        _from_machine(context)


def _from_cluster(context: Context, timeout: float, *, nodes: bool) -> None:
    from ztctl import removal  # noqa: PLC0415  a large library behind it

    rows = []
    table = context.form is Format.TABLE
    with closing(context.cluster()) as cluster:
        for obj in removal.uninstall(
            cluster, timeout, lambda text: click.echo(text, err=not table), nodes=nodes
        ):
            if table:
                click.echo(f"removed {title(obj)}")
            rows.append({"removed": obj["kind"], **_name(obj)})
    if not table:
        context.print_rows(rows, ())
    elif not rows:
        click.echo("nothing to remove")


def _name(obj: Object) -> Row:
    metadata = obj["metadata"]
    return {"namespace": metadata.get("namespace", ""), "name": metadata["name"]}


def _from_machine(context: Context) -> None:
    installations = context.installations_or_none()
    for each in installations:
        _require_stopped(each)
    rows = [
        {"node": each.node, "removed": kind, "path": str(path)}
        for each in installations
        for kind, path in remove(each)
    ]
    if context.form is Format.TABLE and not rows:
        click.echo("nothing to remove on this machine; a cluster is meant with --context NAME")
    else:
        context.print_rows(rows, COLUMNS)


def remove(installation: Installation) -> Iterator[tuple[str, Path]]:
    """Remove everything of one node; yields what and where, one by one."""
    yield from _remove_pins(installation.pin_dir)
    yield from _remove_run_dir(installation.run_dir)


def _require_stopped(installation: Installation) -> None:
    for name in SOCKETS:
        pid = _listener(installation.run_dir / name)
        if pid is not None:
            stop = f"ztctl lab down --name {installation.lab}" if installation.lab else "stop it"
            raise CommandError(
                f"process {pid}, the agent of {installation.node}, still listens at "
                f"{installation.run_dir / name}; {stop}, then uninstall"
            )


def _listener(path: Path) -> int | None:
    """The pid of whoever listens at a unix socket."""
    with socket.socket(socket.AF_UNIX, _kind_of(path)) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return None
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[0])


def _kind_of(path: Path) -> socket.SocketKind:
    return socket.SOCK_SEQPACKET if path.name == "agent.sock" else socket.SOCK_STREAM


def _remove_pins(pin_dir: Path) -> Iterator[tuple[str, Path]]:
    if not pin_dir.exists():
        return
    if not requirements.bpffs(pin_dir).mounted or pin_dir == requirements.bpffs(pin_dir).point:
        raise CommandError(
            f"looked at {pin_dir}: it is not a directory inside a bpffs; name another --pin-dir"
        )
    for part in _PINNED:
        directory = pin_dir / part
        for pin in sorted(directory.glob("*"), key=lambda pin: not pin.name.startswith(_FIRST)):
            if part == "links":
                _detach(pin)
            pin.unlink(missing_ok=True)
            yield part.removesuffix("s"), pin
        if directory.exists():
            directory.rmdir()
    pin_dir.rmdir()
    yield "directory", pin_dir


def _detach(pin: Path) -> None:
    """At once, even if somebody holds the link open; a pin's end alone would wait for them."""
    link = syscall.get(pin)
    try:
        syscall.link_detach(link)
    finally:
        os.close(link)


def _remove_run_dir(run_dir: Path) -> Iterator[tuple[str, Path]]:
    """Only what is known to be ours: somebody may have named a directory with other things."""
    if not run_dir.is_dir():
        return
    for pattern in ("*.sock", "*.lock", "*.log"):
        for path in sorted(run_dir.glob(pattern)):
            path.unlink(missing_ok=True)
            yield "file", path
    with suppress(OSError):  # something else is in it
        run_dir.rmdir()
        yield "directory", run_dir
