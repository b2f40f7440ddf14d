# SPDX-License-Identifier: Apache-2.0
"""Authorizes native UDP to this node's captured pods.

The proxy authorizes UDP over connect-udp. Native UDP does not use a proxy: plaintext from other
nodes, and UDP between pods of this node, whose sender the kernel identifies by its network
namespace. The kernel admits a flow by a cached decision, and sends the first datagram of a flow
without one to a socket of the agent:

    no policy can deny any sender -> the pod is open: the kernel admits all datagrams
    first datagram of a flow -> decision, valid for this policy epoch
                                  |-> allowed: access log line; delivered to the app
                                  |-> denied: access log line; dropped, like those that follow
    policies or pods change -> new epoch: all decisions are revoked

The rate of datagrams without a decision is limited; the kernel drops those in excess.
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
from ztunnel.mesh.address import family
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import Decision, PolicyEngine, display_name
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.telemetry import labels
from ztunnel.telemetry.access_log_filter import is_wanted
from ztunnel.telemetry.labels import Reporter
from ztunnel.telemetry.logs import access_logger
from ztunnel.telemetry.response_flags import Flag

BATCH = 32  # datagrams read from a socket before the pause
PAUSE_S = 0.02  # between two batches of a socket
MAX_LOG_LINES_PER_S = 50
MAX_DATAGRAM_BYTES = 65536

log = structlog.get_logger()
access_log = access_logger()


class UdpAdmission(Protocol):
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
        admission: UdpAdmission,
        policies: PolicyEngine,
        pods: CapturedPods,
        workload_at: Callable[[str], Workload | None],
        *,
        logs: LogSettings,
        mode: SameNode,
        on_denied: Callable[[SeriesCounts], None] = lambda _: None,
    ) -> None:
        """`workload_at` finds a workload by IP address. `on_denied` counts a denied flow."""
        self.allowed = self.denied = 0  # flows, each once per epoch
        self._admission = admission
        self._policies = policies
        self._pods = pods
        self._logs = logs
        self._workload_at = workload_at
        self._mode = mode
        self._on_denied = on_denied
        self._sockets: dict[int, dict[int, socket.socket]] = {}  # by cookie and family
        self._buffer = memoryview(bytearray(MAX_DATAGRAM_BYTES))
        self._log_budget = TokenBucket(MAX_LOG_LINES_PER_S)

    def pod_captured(self, pod: Pod) -> None:
        """Authorize UDP to the pod from now on. Raises OSError."""
        if pod.cookie not in self._sockets and pod.netns is not None:
            ipv6 = any(family(address) == 6 for address in pod.addresses)
            opened = self._sockets[pod.cookie] = self._admission.sockets(pod.netns.fd, ipv6=ipv6)
            loop = asyncio.get_running_loop()
            for sock in opened.values():
                loop.add_reader(sock, self._read, pod.cookie, sock)
        for address in pod.addresses:
            authorizer = self._sockets.get(pod.cookie, {}).get(family(address))
            if authorizer is not None:
                self._admission.set_authorizer_socket(address, authorizer)
            if self._policies.allows_any_source(pod.workload):
                self._admission.allow_all_sources(address)

    def apply(self, change: ViewChange) -> None:
        """Begin an epoch if decisions may be different now."""
        if change.affects_authorization:
            self.begin_epoch()

    def begin_epoch(self) -> None:
        """Revoke all decisions: flows are authorized again by the current policies."""
        captured = self._pods.redirected()
        open_addresses = [
            address
            for pod in captured.values()
            if self._policies.allows_any_source(pod.workload)
            for address in pod.addresses
        ]
        try:
            self._admission.begin_epoch(open_addresses)
        except OSError as error:  # old decisions are revoked nevertheless
            log.warning("open UDP addresses not written", error=str(error))
        self.reconcile()

    def reconcile(self) -> None:
        """Close the sockets of pods that are gone, which would keep their namespaces alive, and
        retry pods without sockets."""
        captured = self._pods.redirected()
        for cookie in self._sockets.keys() - captured.keys():
            self._close(cookie)
        for cookie, pod in captured.items():
            if cookie not in self._sockets:
                try:
                    self.pod_captured(pod)
                except OSError as error:
                    log.error("UDP authorizer setup failed", pod=pod.workload.uid, error=str(error))

    def log_strict_drop(self, source: SocketAddress, destination: SocketAddress) -> None:
        """Log a datagram of a local pod that the kernel dropped: its destination requires mTLS."""
        if not self._log_budget.take():
            return
        sender, receiver = self._workload_at(source.ip), self._workload_at(destination.ip)
        wanted = is_wanted(self._logs.current, sender.namespace if sender else "", failed=True)
        if wanted and self._logs.admits(failed=True):
            access_log.warning(
                "refused",
                direction="outbound",
                protocol="udp",
                **_peer_fields("src", source, sender, sender.identity if sender else ""),
                **_peer_fields("dst", destination, receiver, ""),
                error="plaintext, but mTLS is required",
            )

    def view(self) -> dict[str, int]:
        """The section `udp.authorizer` of the data path's status."""
        return {
            "allowed": self.allowed,
            "denied": self.denied,
            "log_lines_dropped": self._log_budget.exceeded,
        }

    def close(self) -> None:
        """Close all sockets."""
        for cookie in list(self._sockets):
            self._close(cookie)

    def _close(self, cookie: int) -> None:
        for sock in self._sockets.pop(cookie).values():
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _read(self, cookie: int, sock: socket.socket) -> None:
        pod = self._pods.redirected().get(cookie)
        for _ in range(BATCH):
            try:
                received = udp_admission_maps.receive(sock, self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("UDP receive failed", error=str(error))
                return
            if received is None or pod is None:
                continue
            length, source, destination = received
            if destination.ip in pod.addresses:
                self._authorize(pod, sock, self._buffer[:length], source, destination)
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        loop.call_later(PAUSE_S, self._resume, cookie, sock)

    def _resume(self, cookie: int, sock: socket.socket) -> None:
        if sock in self._sockets.get(cookie, {}).values():
            asyncio.get_running_loop().add_reader(sock, self._read, cookie, sock)

    def _authorize(
        self,
        pod: Pod,
        sock: socket.socket,
        payload: memoryview,
        source: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        sender = self._pods.redirected().get(self._admission.source_pod(source, destination))
        local = sender.workload if sender and self._is_trusted(sender, source) else None
        identity = local.identity if local else ""
        flow = _Flow(source, local or self._workload_at(source.ip), identity, pod, destination)
        decision = self._policies.decide(
            pod.workload, AuthzRequest(source.ip, identity, destination, udp=True)
        )
        cookie = sender.cookie if sender else 0
        try:
            self._admission.set_decision(
                UdpDecision(cookie, source.ip, destination, decision.allowed)
            )
        except OSError as error:  # the next datagram is authorized again
            log.warning("udp decision not written", error=str(error))
        if not decision.allowed:
            self.denied += 1
            self._deny(flow, decision)
            return
        self.allowed += 1
        self._log_allowed(flow)
        try:
            udp_admission_maps.deliver(sock, payload, source, destination)
        except OSError as error:  # the app does not listen, or no worker has set up the pod yet
            log.debug("datagram lost", pod=pod.workload.uid, error=str(error))

    def _is_trusted(self, sender: Pod, source: SocketAddress) -> bool:
        """Whether the namespace of a local sender proves its identity."""
        return source.ip in sender.addresses and self._mode is SameNode.DIRECT

    def _log_allowed(self, flow: _Flow) -> None:
        wanted = is_wanted(self._logs.current, flow.pod.workload.namespace, failed=False)
        if wanted and self._log_budget.take() and self._logs.admits(failed=False):
            access_log.info("udp flow allowed", **flow.log_fields(), note="native datagrams")

    def _deny(self, flow: _Flow, decision: Decision) -> None:
        target = flow.pod.workload
        series = labels.connection_labels(
            Reporter.DESTINATION,
            flow.sender,
            target,
            principals=(flow.identity, target.identity if flow.identity else ""),
            protocol="udp",
        )
        self._on_denied(SeriesCounts(labels.with_flag(series, Flag.DENY), failed=1))
        wanted = is_wanted(self._logs.current, target.namespace, failed=True)
        if not wanted or not self._log_budget.take() or not self._logs.admits(failed=True):
            return
        access_log.warning(
            "denied",
            **flow.log_fields(),
            response_flags="DENY",
            policy=display_name(decision.policy),
            **({"rule": f"rules[{decision.rule}]"} if decision.rule >= 0 else {}),
            error=decision.reason,
        )


@dataclass(frozen=True)
class _Flow:
    """A sender, as far as it is known, and a destination. Only local senders have an `identity`."""

    source: SocketAddress
    sender: Workload | None
    identity: str
    pod: Pod
    destination: SocketAddress

    def log_fields(self) -> dict[str, Any]:
        target = self.pod.workload
        return {
            "direction": "inbound",
            "protocol": "udp",
            **_peer_fields("src", self.source, self.sender, self.identity),
            **_peer_fields("dst", self.destination, target, target.identity),
            **({"same_node": True} if self.identity else {}),
        }


class TokenBucket:
    """Allows a number of log lines per second, and counts the lines in excess."""

    def __init__(self, rate_per_s: int) -> None:
        self.exceeded = 0
        self._rate_per_s = rate_per_s
        self._tokens = float(rate_per_s)
        self._refilled_at = 0.0

    def take(self) -> bool:
        now = asyncio.get_running_loop().time()
        elapsed = now - self._refilled_at
        self._tokens = min(self._rate_per_s, self._tokens + elapsed * self._rate_per_s)
        self._refilled_at = now
        if self._tokens < 1:
            self.exceeded += 1
            return False
        self._tokens -= 1
        return True


def _peer_fields(
    prefix: str, address: SocketAddress, workload: Workload | None, identity: str
) -> dict[str, str]:
    fields = {f"{prefix}.addr": str(address)}
    if workload is not None:
        fields |= {f"{prefix}.workload": workload.name, f"{prefix}.namespace": workload.namespace}
    if identity:
        fields[f"{prefix}.identity"] = identity
    return fields
