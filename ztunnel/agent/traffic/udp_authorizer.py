# SPDX-License-Identifier: Apache-2.0
"""Native UDP into this node's captured pods: who may come in, and who may not.

What comes by connect-udp is judged by the proxy. The rest never passes a proxy: plaintext from
elsewhere, and pods of this node, who are known by the namespace that was seen to send. The kernel
lets it in by verdict, and gives what has none to a socket of ours:

    no policy could keep anybody out ─▶ the pod is open: no questions
    first datagram of a pair ─▶ judged ─▶ verdict, for this generation
                                  ├▶ allowed: a line in the log; brought to the app
                                  └▶ denied: a line in the log; dropped, as all that follow
    policies or pods change ─▶ every verdict void

Questions are taken at a bounded rate; what exceeds it the kernel drops.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from ztunnel.agent.config import SameNode
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.datapath import udp_admission_maps
from ztunnel.datapath.udp_admission_maps import UdpDecision
from ztunnel.ipc.messages import SeriesCounts
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import Decision, PolicyEngine, display_name
from ztunnel.mesh.policy.rule_index import AuthzRequest
from ztunnel.telemetry import labels
from ztunnel.telemetry.access_log_filter import is_wanted
from ztunnel.telemetry.labels import Reporter
from ztunnel.telemetry.logs import access_logger
from ztunnel.telemetry.response_flags import Flag

TURN = 32  # questions a socket may ask in one turn
PAUSE = 0.02  # seconds until its next turn
MOST_LINES = 50  # a second
LARGEST = 65536  # octets of a datagram

log = structlog.get_logger()
access_log = access_logger()


class Entry(Protocol):
    """The kernel operations used here; implemented by `UdpAdmissionMaps`."""

    def begin_epoch(self, open_addresses: Iterable[str]) -> None: ...
    def allow_all_sources(self, address: str) -> None: ...
    def set_decision(self, decision: UdpDecision) -> None: ...
    def source_pod(self, source: SocketAddress, destination: SocketAddress) -> int: ...
    def sockets(self, netns_fd: int, *, ipv6: bool) -> dict[int, socket.socket]: ...
    def set_authorizer_socket(self, address: str, sock: socket.socket) -> None: ...


class UdpAuthorizer(ViewConsumer):
    """One per agent; used from the event loop only."""

    def __init__(
        self,
        entry: Entry,
        policies: PolicyEngine,
        pods: CapturedPods,
        workload_at: Callable[[str], Workload | None],
        *,
        logs: LogSettings,
        mode: SameNode,
        count: Callable[[SeriesCounts], None] = lambda _: None,
    ) -> None:
        self.allowed = self.denied = 0  # pairs, each once a generation
        self._entry = entry
        self._policies = policies
        self._pods = pods
        self._logs = logs
        self._workload_at = workload_at
        self._mode = mode
        self._count = count
        self._sockets: dict[int, dict[int, socket.socket]] = {}  # by cookie, by family
        self._buffer = memoryview(bytearray(LARGEST))
        self._lines = TokenBucket(MOST_LINES)

    def captured(self, pod: Pod) -> None:
        """What comes into the pod is ours to judge from now on."""
        if pod.cookie not in self._sockets and pod.netns is not None:
            ipv6 = any(":" in address for address in pod.addresses)
            made = self._sockets[pod.cookie] = self._entry.sockets(pod.netns.fd, ipv6=ipv6)
            loop = asyncio.get_running_loop()
            for sock in made.values():
                loop.add_reader(sock, self._read, pod.cookie, sock)
        for address in pod.addresses:
            judge = self._sockets.get(pod.cookie, {}).get(6 if ":" in address else 4)
            if judge is not None:
                self._entry.set_authorizer_socket(address, judge)
            if self._policies.allows_any_source(pod.workload):
                self._entry.allow_all_sources(address)

    def apply(self, change: ViewChange) -> None:
        """Revoke all decisions if they may be different now."""
        if change.affects_authorization:
            self.changed()

    def changed(self) -> None:
        """Pods of this node, or policies, are others: whoever was let in is asked again."""
        captured = self._pods.redirected()
        self._entry.begin_epoch(
            address
            for pod in captured.values()
            if self._policies.allows_any_source(pod.workload)
            for address in pod.addresses
        )
        self.keep()

    def keep(self) -> None:
        """Let go of pods that are gone; what stays open keeps their namespaces alive. Try again
        where there is no socket yet."""
        captured = self._pods.redirected()
        for cookie in self._sockets.keys() - captured.keys():
            self._close(cookie)
        for cookie, pod in captured.items():
            if cookie not in self._sockets:
                try:
                    self.captured(pod)
                except OSError as error:
                    log.error("UDP is not let in", pod=pod.workload.uid, error=str(error))

    def refused(self, source: SocketAddress, destination: SocketAddress) -> None:
        """A pod of this node may not send this in the clear; the kernel has dropped it."""
        if not self._lines.take():
            return
        ours, theirs = self._workload_at(source.ip), self._workload_at(destination.ip)
        if is_wanted(self._logs.current, ours.namespace if ours else "", failed=True):
            access_log.warning(
                "refused",
                direction="outbound",
                protocol="udp",
                **_party("src", source, ours, ours.identity if ours else ""),
                **_party("dst", destination, theirs, ""),
                error="plaintext, where mTLS is required",
            )

    def view(self) -> dict[str, int]:
        """For people."""
        return {"allowed": self.allowed, "denied": self.denied, "unlogged": self._lines.refused}

    def close(self) -> None:
        """Let go of every socket."""
        for cookie in list(self._sockets):
            self._close(cookie)

    def _close(self, cookie: int) -> None:
        for sock in self._sockets.pop(cookie).values():
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _read(self, cookie: int, sock: socket.socket) -> None:
        pod = self._pods.redirected().get(cookie)
        for _ in range(TURN):
            try:
                came = udp_admission_maps.receive(sock, self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("UDP receive failed", error=str(error))
                return
            if came is not None and pod is not None and came[2].ip in pod.addresses:
                self._judge(pod, sock, self._buffer[: came[0]], came[1], came[2])
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        loop.call_later(PAUSE, self._resume, cookie, sock)

    def _resume(self, cookie: int, sock: socket.socket) -> None:
        if sock in self._sockets.get(cookie, {}).values():
            asyncio.get_running_loop().add_reader(sock, self._read, cookie, sock)

    def _judge(
        self,
        pod: Pod,
        sock: socket.socket,
        payload: memoryview,
        source: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        sender = self._pods.redirected().get(self._entry.source_pod(source, destination))
        near = sender.workload if sender and self._is_known(sender, source) else None
        identity = near.identity if near else ""
        pair = _Pair(source, near or self._workload_at(source.ip), identity, pod, destination)
        decision = self._policies.decide(
            pod.workload, AuthzRequest(source.ip, identity, destination)
        )
        cookie = sender.cookie if sender else 0
        self._entry.set_decision(UdpDecision(cookie, source.ip, destination, decision.allowed))
        if not decision.allowed:
            self.denied += 1
            self._deny(pair, decision)
            return
        self.allowed += 1
        self._let_in(pair)
        try:
            udp_admission_maps.deliver(sock, payload, source, destination)
        except OSError as error:  # no worker has made the pod's tokens yet, or nobody is there
            log.debug("datagram lost", pod=pod.workload.uid, error=str(error))

    def _is_known(self, sender: Pod, source: SocketAddress) -> bool:
        """Whether a pod of this node has its identity by its namespace alone."""
        return source.ip in sender.addresses and self._mode is SameNode.DIRECT

    def _let_in(self, pair: _Pair) -> None:
        """A line, once for each verdict."""
        wanted = is_wanted(self._logs.current, pair.pod.workload.namespace, failed=False)
        if wanted and self._lines.take():
            access_log.info("let in", **pair.line(), note="native datagrams")

    def _deny(self, pair: _Pair, decision: Decision) -> None:
        ours = pair.pod.workload
        series = labels.connection_labels(
            Reporter.DESTINATION,
            pair.sender,
            ours,
            principals=(pair.identity, ours.identity if pair.identity else ""),
            protocol="udp",
        )
        self._count(SeriesCounts(labels.with_flag(series, Flag.DENY), failed=1))
        wanted = is_wanted(self._logs.current, ours.namespace, failed=True)
        if not wanted or not self._lines.take():
            return
        access_log.warning(
            "denied",
            **pair.line(),
            response_flags="DENY",
            policy=display_name(decision.policy),
            **({"rule": f"rules[{decision.rule}]"} if decision.rule >= 0 else {}),
            error=decision.reason,
        )


@dataclass(frozen=True)
class _Pair:
    """Who asks, as far as it is known, and for what. Only a pod of this node has an `identity`."""

    source: SocketAddress
    sender: Workload | None
    identity: str
    pod: Pod
    destination: SocketAddress

    def line(self) -> dict[str, Any]:
        """For the log."""
        ours = self.pod.workload
        return {
            "direction": "inbound",
            "protocol": "udp",
            **_party("src", self.source, self.sender, self.identity),
            **_party("dst", self.destination, ours, ours.identity),
            **({"same_node": True} if self.identity else {}),
        }


class TokenBucket:
    """So many lines a second; the rest is counted."""

    def __init__(self, most: int) -> None:
        self.refused = 0
        self._most = most
        self._left = float(most)
        self._at = 0.0

    def take(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._left = min(self._most, self._left + (now - self._at) * self._most)
        self._at = now
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        return True


def _party(
    prefix: str, address: SocketAddress, workload: Workload | None, identity: str
) -> dict[str, str]:
    found = {f"{prefix}.addr": str(address)}
    if workload is not None:
        found |= {f"{prefix}.workload": workload.name, f"{prefix}.namespace": workload.namespace}
    if identity:
        found[f"{prefix}.identity"] = identity
    return found
