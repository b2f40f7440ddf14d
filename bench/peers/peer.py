# SPDX-License-Identifier: Apache-2.0
"""A peer is a pair of proxies, one in the pod of the client and one in the pod of the server.

    client ──▶ route.listen │ first proxy │──mTLS──▶ route.tunnel │ second proxy │──▶ route.forward
    └─────── client's netns ─────────────┘          └────────── server's netns ───────────────┘

The bytes take the same path as with ztunnel: loopback in both pods, encrypted between them. To add
a pair, subclass `Pair` and list it in `bench.peers.registry`, or set ZTUNNEL_BIN to a program (see
`bench.peers.external`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric import ec

from ztunnel.lab.network import netns

_START_SECONDS = 15.0
_STOP_SECONDS = 5.0
_POLL = 0.05

Address = tuple[str, int]


class PeerError(Exception):
    """A peer could not be started; the text has the end of its log."""


@dataclass(frozen=True)
class Certificates:
    """PEM files for both ends: trusted roots, a certificate, its key, and certificate and key in
    one."""

    roots: Path
    certificate: Path
    key: Path
    bundle: Path


@dataclass(frozen=True)
class Route:
    """The addresses of a pair. `directory` is for its configuration and logs."""

    client_netns: str
    server_netns: str
    listen: Address
    tunnel: Address
    forward: Address
    certificates: Certificates
    directory: Path


class Peer(ABC):
    """A contender on one path, from `start` to `stop`."""

    name: ClassVar[str]
    curve: ClassVar[type[ec.EllipticCurve]] = ec.SECP256R1  # of the key of its certificate

    @abstractmethod
    def absent(self) -> str | None:
        """Why the peer cannot be measured, with a hint; None if it can."""

    @abstractmethod
    def start(self, route: Route) -> None:
        """Serve the route; return once it does. Raises PeerError, with nothing left running."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what `start` started; safe to repeat."""

    @property
    @abstractmethod
    def address(self) -> Address:
        """The address that a client dials in its pod."""

    @property
    @abstractmethod
    def processes(self) -> tuple[int, ...]:
        """The process IDs of the proxies, the client side first."""


class Pair(Peer):
    """Two processes, stopped by process ID.

    Each has its own session, like the processes of ztunnel: the kernel may divide CPU time between
    sessions (autogroup), so that one session for both is not equivalent.
    """

    def __init__(self) -> None:
        self._route: Route | None = None
        self._running: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def command(self, route: Route, role: str) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command line and additional environment of `outbound` or `inbound`.

        Writes the files that they need to `route.directory`.
        """

    def start(self, route: Route) -> None:
        route.directory.mkdir(parents=True, exist_ok=True)
        self._route = route
        places = (
            ("inbound", route.server_netns, route.tunnel),
            ("outbound", route.client_netns, route.listen),
        )
        try:
            for role, space, address in places:
                self._launch(route, role, space)
                self._await(route, role, space, address)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    @property
    def address(self) -> Address:
        assert self._route is not None, "not started"
        return self._route.listen

    @property
    def processes(self) -> tuple[int, ...]:
        inbound, outbound = self._running
        return outbound.pid, inbound.pid

    def _launch(self, route: Route, role: str, space: str) -> None:
        argv, more = self.command(route, role)
        with (route.directory / f"{role}.log").open("wb") as log:
            self._running.append(
                subprocess.Popen(
                    [*netns.enter_argv(space), *argv],
                    env={**os.environ, **more},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _await(self, route: Route, role: str, space: str, address: Address) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not _accepts(space, address):
            ended = self._running[-1].poll() is not None
            if ended or time.monotonic() > deadline:
                log = (route.directory / f"{role}.log").read_text(errors="replace")
                found = "ended" if ended else f"does not listen on {address}"
                raise PeerError(f"{self.name} {role} {found}; its log ends: {log[-600:].strip()}")
            time.sleep(_POLL)


def _accepts(space: str, address: Address) -> bool:
    with netns.inside(space):
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError:
            return False
    return True
