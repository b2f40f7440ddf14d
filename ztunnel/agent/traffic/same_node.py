# SPDX-License-Identifier: Apache-2.0
"""Pods of this node that speak to each other: authorised once by the proxy, then by the kernel.

    worker: Allowed --believed? permitted?--> verdict --> new connections go without the proxy
    anything changes here, or a policy -----> every verdict is void, first of all; live
                                              connections that are denied now are destroyed
    a pod is captured -------------> what it still has open by verdict is destroyed
    kernel: a connection is over --> a line in the access log, sums

A verdict needs a living agent: its lease is short, so that what nobody watches any more goes the
proxy's way, which proves who answers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog

from ztunnel.agent.config import SameNode
from ztunnel.agent.datapath import DataPath
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.traffic.same_node_metrics import KernelCounts
from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.datapath.bpf.layout import CloseReason, SameNodeState
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent
from ztunnel.datapath.same_node_maps import BypassEntry, SameNodeConnection
from ztunnel.ipc.messages import SameNodeAllowed
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import Decision, PolicyEngine, display_name
from ztunnel.mesh.policy.rule_index import AuthzRequest
from ztunnel.mesh.ports import RESERVED
from ztunnel.telemetry.access_log_filter import is_wanted
from ztunnel.telemetry.logs import access_logger

LEASE = 5.0  # seconds a verdict outlives its agent
RENEWAL = 1.0  # seconds between renewals
READ_EVERY = 0.2  # seconds between looks at the kernel's events
MOST_EVENTS = 8192  # taken at one look
MOST_LINES = 100  # of the log at one look; what exceeds them is summed up by pair
REMEMBERED = 512  # pods, gone ones too: their last connections may still be told of

log = structlog.get_logger()
access_log = access_logger()

_ERRORS = {
    CloseReason.ORDERLY: "",
    CloseReason.RESET: "connection reset",
    CloseReason.REFUSED: "connection refused",
    CloseReason.UNEXPECTED_PEER: "answered by who is not the destination pod: cut off",
    CloseReason.UDP_STRICT: "plaintext, where mTLS is required",
}


class SameNodeStats(msgspec.Struct):
    """Connections by verdict since the agent started."""

    verdicts_given: int = 0
    allowed_disbelieved: int = 0
    denied: int = 0  # live ones that a change of policy ended
    closed: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0
    retransmits: int = 0
    destroyed: int = 0


def believe(
    news: SameNodeAllowed, pods: Iterable[Pod], revision: int, mode: SameNode
) -> BypassEntry | str:
    """The verdict that a worker's news is worth, or why it is worth none."""
    if mode is not SameNode.DIRECT:
        return "same-node traffic is encrypted"
    if news.revision != revision:
        return f"decided by revision {news.revision}, not {revision}"
    captured = [pod for pod in pods if pod.state is PodState.CAPTURED and not pod.error]
    source = next((pod for pod in captured if news.source_ip in pod.addresses), None)
    target = next((pod for pod in captured if pod.uid == news.pod_uid), None)
    if source is None or target is None or source is target:
        return "not between two captured pods of this node"
    wrong = _contradiction(news, source, target)
    return wrong or BypassEntry(source.cookie, news.destination, target.cookie)


def _contradiction(news: SameNodeAllowed, source: Pod, target: Pod) -> str:
    """What the news says of the pods that is not so; empty when all is."""
    if source.workload.identity != news.source_identity:
        return f"{news.source_ip} is {source.workload.identity}, not {news.source_identity}"
    if news.destination.ip not in target.addresses:
        return f"{news.destination.ip} is not the destination pod's"
    if news.destination.port in RESERVED:
        return f"port {news.destination.port} is the mesh's own"
    return ""


class SameNodeTraffic(SessionObserver):
    """The verdicts of this node and what becomes of connections by them."""

    def __init__(
        self,
        datapath: DataPath,
        mode: SameNode,
        pods: CapturedPods,
        policies: PolicyEngine,
        sessions: SessionRegistry,
        *,
        logs: LogSettings,
        metrics: KernelCounts | None = None,
        on_strict_drop: Callable[[SocketAddress, SocketAddress], None] = lambda *_: None,
    ) -> None:
        """`metrics` sums the connections; `on_strict_drop` gets the source and the destination of
        UDP that the kernel dropped because the destination requires mTLS."""
        self.sums = SameNodeStats()
        self._sessions = sessions
        self._revision = 0  # of the view that `policies` and `pods` correspond to
        self._logs = logs
        self._on_strict_drop = on_strict_drop
        self._counts = metrics
        self._denied: dict[int, None] = {}  # sockets whose connections policy ended, oldest first
        self._policies = policies
        self._unchecked = True  # connections there may be whose pods we did not know when we looked
        self._datapath = datapath
        self._mode = mode
        self._pods = pods
        self._distrusted: dict[tuple[int, int], None] = {}  # pairs of cookies, oldest first
        self._known: dict[int, Workload] = {}  # by namespace cookie, the gone included

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handler of `SameNodeAllowed`."""
        handlers.register(SameNodeAllowed, self._worker_allowed)

    def left(self, session: Session) -> None:
        """Without a worker nothing may be admitted, by the kernel either."""
        if not self._sessions.sessions:
            self.revoke()

    def _worker_allowed(self, session: Session, news: SameNodeAllowed, fds: list[int]) -> None:
        if news.pod_uid in session.ready:
            self.allowed(news)

    def allowed(self, news: SameNodeAllowed) -> None:
        """A worker let a pod in at another one."""
        verdict = believe(news, self._pods, self._revision, self._mode)
        if isinstance(verdict, BypassEntry) and _pair(verdict) in self._distrusted:
            verdict = "the last connection by verdict was answered by somebody else"
        if isinstance(verdict, BypassEntry):
            verdict = self._permitted(news, verdict)
        if isinstance(verdict, str):
            self.sums.allowed_disbelieved += 1
            log.debug("no verdict", source=news.source_ip, reason=verdict)
            return
        self._datapath.give_verdict(verdict)
        self.sums.verdicts_given += 1

    def _permitted(self, news: SameNodeAllowed, verdict: BypassEntry) -> BypassEntry | str:
        """The verdict, if policy allows the connection by our own reckoning too."""
        target = self._pods.by_cookie(verdict.destination_cookie)
        assert target is not None  # `believe` found it
        asked = AuthzRequest(news.source_ip, news.source_identity, news.destination)
        decision = self._policies.decide(target.workload, asked)
        return verdict if decision.allowed else decision.reason

    def recheck(self) -> None:
        """Policies, or what they rest on, have changed: destroy what is denied now. To be called
        after `revoke`, so that what is not seen here was not let in by an old verdict."""
        self._unchecked = False
        if not len(self._policies):
            return
        pods = {pod.cookie: pod for pod in self._pods if pod.cookie}
        self._meet_pods()
        for entry in self._datapath.direct():
            source, target = pods.get(entry.netns_cookie), pods.get(entry.destination_cookie)
            if source is None or target is None:
                self._unchecked = True
                continue
            asked = AuthzRequest(entry.source.ip, source.workload.identity, entry.destination)
            decision = self._policies.decide(target.workload, asked)
            if not decision.allowed:
                self._deny(entry, decision)

    def _deny(self, entry: SameNodeConnection, decision: Decision) -> None:
        self.sums.denied += 1
        self._denied[entry.owner] = None
        while len(self._denied) > MOST_EVENTS:
            del self._denied[next(iter(self._denied))]
        target = self._known.get(entry.destination_cookie)
        self._destroy(entry)
        if not is_wanted(self._logs.current, target.namespace if target else "", failed=True):
            return
        access_log.warning(
            "denied",
            direction="inbound",
            **_fields("src", self._party(entry.netns_cookie, str(entry.source))),
            **_fields("dst", self._party(entry.destination_cookie, str(entry.destination))),
            same_node=True,
            response_flags="DENY",
            policy=display_name(decision.policy),
            **({"rule": f"rules[{decision.rule}]"} if decision.rule >= 0 else {}),
            error=decision.reason,
        )

    def set_revision(self, revision: int) -> None:
        """Only what workers decided by this revision of the view is accepted from now on."""
        self._revision = revision

    def revoke(self) -> None:
        """Something that verdicts rest on is about to change."""
        self._datapath.revoke_verdicts()

    def captured(self, pod: Pod) -> None:
        """The pod's namespace is captured from now on: what it has open by verdicts of before was
        not let in by this capture."""
        self._known[pod.cookie] = pod.workload
        for entry in self._datapath.direct():
            if pod.cookie in (entry.netns_cookie, entry.destination_cookie):
                self._destroy(entry)

    def renew(self) -> None:
        """The agent lives: verdicts go on."""
        self._datapath.renew_verdicts(LEASE)
        self._datapath.purge_verdicts()
        if self._unchecked:
            self.recheck()

    def read(self) -> None:
        """Take what the kernel tells, log it, add it up."""
        ended = self._datapath.ended(MOST_EVENTS)
        if not ended:
            return
        for event in ended:
            if event.close_reason is CloseReason.UDP_STRICT:
                self._on_strict_drop(event.source, event.destination)
        ended = [event for event in ended if event.close_reason is not CloseReason.UDP_STRICT]
        self._meet_pods()
        for event in ended:
            self._count(event)
        if self._counts is not None:
            self._counts.tell()
        told = [event for event in ended if self._is_wanted(event)]
        for event in told[:MOST_LINES]:
            access_log.info("connection", **self._line(event))
        self._summarise(told[MOST_LINES:])

    def live(self) -> list[dict[str, Any]]:
        """The connections by verdict, as rows like the workers'."""
        self._meet_pods()
        now, boot = time.time(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return [
            {
                "direction": "outbound",
                "source": self._party(entry.netns_cookie, str(entry.source)),
                "destination": self._party(entry.destination_cookie, str(entry.destination)),
                "started": now - (boot - entry.start_ns) / 1e9,
                "same_node": True,
            }
            for entry in self._datapath.direct()
            if entry.epoch and entry.state is SameNodeState.ESTABLISHED
        ]

    def status(self) -> dict[str, Any]:
        """For people: mode, verdicts in force, sums."""
        return {
            "mode": self._mode.value,
            "verdicts": len(self._datapath.verdicts()),
            **msgspec.to_builtins(self.sums),
        }

    def _is_wanted(self, event: ConnectionEvent) -> bool:
        source = self._known.get(event.netns_cookie)
        failed = event.close_reason is not CloseReason.ORDERLY
        return is_wanted(self._logs.current, source.namespace if source else "", failed=failed)

    def _count(self, event: ConnectionEvent) -> None:
        if event.close_reason is CloseReason.UNEXPECTED_PEER:
            self._distrust(event)
            return
        self.sums.closed += 1
        self.sums.failed += event.close_reason is not CloseReason.ORDERLY
        self.sums.sent += event.sent
        self.sums.received += event.received
        self.sums.retransmits += event.retransmits
        if self._counts is not None:
            known = self._known.get
            source, destination = known(event.netns_cookie), known(event.destination_cookie)
            denied = self._denied.pop(event.owner, "") is None
            self._counts.add(event, source, destination, denied=denied)

    def _distrust(self, event: ConnectionEvent) -> None:
        """Not the pod of the verdict answered, or one behind address translation: the two go
        through the proxy from now on, as long as they live in these namespaces."""
        self._datapath.revoke_verdicts()
        self._distrusted[_pair(event)] = None
        while len(self._distrusted) > REMEMBERED:
            del self._distrusted[next(iter(self._distrusted))]
        self._destroy(event)

    def _destroy(self, connection: SameNodeConnection | ConnectionEvent) -> None:
        pod = self._pods.by_cookie(connection.netns_cookie)
        if pod is None or pod.netns is None:
            return  # its sockets went with it, or it left the mesh
        is_cut_off = isinstance(connection, ConnectionEvent)
        try:
            found = self._datapath.destroy(pod.netns.fd, connection, is_cut_off=is_cut_off)
        except OSError as error:
            log.error("connection not destroyed", pod=pod.workload.uid, error=str(error))
            return
        self.sums.destroyed += found

    def _meet_pods(self) -> None:
        """Remember who is who: a connection's end may be told after its pod's."""
        for pod in self._pods:
            if pod.cookie:
                self._known[pod.cookie] = pod.workload
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

    def _party(self, cookie: int, address: str) -> dict[str, str]:
        workload = self._known.get(cookie)
        if workload is None:
            return {"address": address}
        return {
            "address": address,
            "workload": workload.name,
            "namespace": workload.namespace,
            "identity": workload.identity,
        }

    def _line(self, event: ConnectionEvent) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "direction": "outbound",
            **_fields("src", self._party(event.netns_cookie, str(event.source))),
            **_fields("dst", self._party(event.destination_cookie, str(event.destination))),
            "same_node": True,
            "bytes_sent": event.sent,
            "bytes_recv": event.received,
            "duration": f"{event.duration * 1000:.0f}ms",
            "rtt_us": event.srtt_us,
            "retransmits": event.retransmits,
        }
        if error := _ERRORS[event.close_reason]:
            fields["error"] = error
        return fields

    def _summarise(self, ended: list[ConnectionEvent]) -> None:
        """One line for all connections of a pair that end the same way: the log must not cost more
        than the traffic."""
        alike: dict[tuple[object, ...], list[ConnectionEvent]] = defaultdict(list)
        for event in ended:
            pair = (
                event.netns_cookie,
                event.destination_cookie,
                event.destination,
                event.close_reason,
            )
            alike[pair].append(event)
        for events in alike.values():
            line = self._line(events[-1])
            line["src.addr"] = events[-1].source.ip
            line["connections"] = len(events)
            line["bytes_sent"] = sum(event.sent for event in events)
            line["bytes_recv"] = sum(event.received for event in events)
            line["retransmits"] = sum(event.retransmits for event in events)
            access_log.info("connections", **line)


class SameNodeRevocation(ViewConsumer):
    """Before a change that affects authorization, every bypass entry is void."""

    def __init__(self, traffic: SameNodeTraffic) -> None:
        self._traffic = traffic

    def before(self, change: ViewChange) -> None:
        self._traffic.set_revision(change.revision)
        if change.affects_authorization:
            self._traffic.revoke()


class SameNodeRecheck(ViewConsumer):
    """After such a change, terminates the connections that are denied now."""

    def __init__(self, traffic: SameNodeTraffic) -> None:
        self._traffic = traffic

    def apply(self, change: ViewChange) -> None:
        if change.affects_authorization:
            self._traffic.recheck()


def _pair(one: BypassEntry | ConnectionEvent) -> tuple[int, int]:
    return one.netns_cookie, one.destination_cookie


def _fields(prefix: str, party: dict[str, str]) -> dict[str, str]:
    names = {"address": "addr"}
    return {f"{prefix}.{names.get(key, key)}": value for key, value in party.items()}
