# SPDX-License-Identifier: Apache-2.0
"""The same-node bypass: the proxy authorizes a pair of pods once, then the kernel connects it.

    worker: SameNodeAllowed --validated, authorized--> bypass entry --> new connections of the pair
                                                                        do not use the proxy
    a policy or a local pod changes --> all entries are revoked before the change is applied;
                                        connections that are denied now are terminated after it
    a pod is captured ----------------> its earlier bypassed connections are terminated
    the agent stops ------------------> the lease of the entries expires

The lease is short: without a running agent, connections use the proxy, which verifies the peer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec
import structlog

from ztunnel.agent.config import SameNode
from ztunnel.agent.datapath import DataPath
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.traffic.same_node_peers import PeerCache
from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.datapath.bpf.layout import SameNodeState
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent
from ztunnel.datapath.same_node_maps import BypassEntry, SameNodeConnection
from ztunnel.ipc.messages import SameNodeAllowed
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.address import family as address_family
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import Decision, PolicyEngine, display_name
from ztunnel.mesh.policy.match_terms import AuthzRequest
from ztunnel.mesh.ports import RESERVED
from ztunnel.telemetry.access_log_filter import is_wanted
from ztunnel.telemetry.logs import access_logger

LEASE_S = 5.0  # validity of the entries after the agent's last renewal
RENEWAL_INTERVAL_S = 1.0
MAX_QUARANTINED_PAIRS = 512
MAX_DENIED_SOCKETS = 8192  # whose close events are still to come

log = structlog.get_logger()
access_log = access_logger()


class SameNodeStats(msgspec.Struct):
    """Counts since the agent started; the fields from `closed` on are of bypassed connections."""

    entries_allowed: int = 0
    reports_rejected: int = 0  # messages from workers that led to no entry
    denied: int = 0  # established connections that a change of policy denied
    closed: int = 0
    failed: int = 0
    sent: int = 0  # bytes
    received: int = 0  # bytes
    retransmits: int = 0
    terminated: int = 0


def validate(
    report: SameNodeAllowed, pods: Iterable[Pod], revision: int, mode: SameNode
) -> BypassEntry | str:
    """The bypass entry that a worker's report justifies, or the reason why it justifies none."""
    if mode is not SameNode.DIRECT:
        return "same-node traffic is encrypted"
    if report.revision != revision:
        return f"decided at revision {report.revision}, the current one is {revision}"
    captured = [pod for pod in pods if pod.state is PodState.CAPTURED and not pod.error]
    source = next((pod for pod in captured if report.source_ip in pod.addresses), None)
    target = next((pod for pod in captured if pod.uid == report.pod_uid), None)
    if source is None or target is None or source is target:
        return "not between two captured pods of this node"
    mismatch = _mismatch(report, source, target)
    return mismatch or BypassEntry(source.cookie, report.destination, target.cookie)


def _mismatch(report: SameNodeAllowed, source: Pod, target: Pod) -> str:
    """What the report claims of the pods that is not true; empty if all is."""
    if source.workload.identity != report.source_identity:
        return f"{report.source_ip} is {source.workload.identity}, not {report.source_identity}"
    if report.destination.ip not in target.addresses:
        return f"{report.destination.ip} is not an address of the destination pod"
    if report.destination.port in RESERVED:
        return f"port {report.destination.port} is reserved for the mesh"
    if source.workload.needs_waypoint_of(target.workload):
        return f"connections to the destination pass waypoint {target.workload.waypoint}"
    return ""


class SameNodeBypass(SessionObserver):
    """The bypass entries of this node, and the connections that use them."""

    def __init__(
        self,
        datapath: DataPath,
        mode: SameNode,
        pods: CapturedPods,
        policies: PolicyEngine,
        sessions: SessionRegistry,
        *,
        logs: LogSettings,
    ) -> None:
        self.stats = SameNodeStats()
        self.peers = PeerCache()
        self._datapath = datapath
        self._mode = mode
        self._pods = pods
        self._policies = policies
        self._sessions = sessions
        self._logs = logs
        self._revision = 0  # of the view that `policies` and `pods` correspond to
        self._has_unchecked = True  # connections whose pods were unknown at the last recheck
        self._denied: dict[int, None] = {}  # sockets that `recheck` terminated, oldest first
        self._unterminated: deque[SameNodeConnection | ConnectionEvent] = deque(
            maxlen=MAX_DENIED_SOCKETS
        )  # to be retried
        self._quarantined: dict[tuple[int, int], None] = {}  # pairs of cookies, oldest first

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handler of `SameNodeAllowed`."""
        handlers.register(SameNodeAllowed, self._worker_allowed)

    def left(self, session: Session) -> None:
        """Without a worker, no new connection is admitted, by the kernel either."""
        if not self._sessions.sessions:
            self.revoke()

    def _worker_allowed(self, session: Session, report: SameNodeAllowed, fds: list[int]) -> None:
        if report.pod_uid in session.ready:
            self.allow(report)

    def allow(self, report: SameNodeAllowed) -> None:
        """Create the bypass entry for a pair that a worker authorized, if the report is valid and
        the agent's own policy engine allows the pair, too."""
        entry = self._entry_of(report)
        if isinstance(entry, str):
            self.stats.reports_rejected += 1
            log.debug("bypass entry rejected", source=report.source_ip, reason=entry)
            return
        self._write(entry)

    def allow_pair(self, source: Pod, target: Pod, destination: SocketAddress) -> None:
        """Create the bypass entry for a pair of captured pods that no worker reported yet, if the
        agent's policy engine allows it."""
        family = address_family(destination.ip)
        source_ip = next((ip for ip in source.addresses if address_family(ip) == family), "")
        report = SameNodeAllowed(
            source_ip=source_ip,
            source_identity=source.workload.identity,
            pod_uid=target.uid,
            destination=destination,
            revision=self._revision,
        )
        entry = self._entry_of(report) if source_ip and self._sessions.sessions else ""
        if isinstance(entry, BypassEntry):
            self._write(entry)

    def _entry_of(self, report: SameNodeAllowed) -> BypassEntry | str:
        entry = validate(report, self._pods, self._revision, self._mode)
        if isinstance(entry, BypassEntry) and pair_of(entry) in self._quarantined:
            return "an unexpected peer answered an earlier bypassed connection of the pair"
        return self._authorize(report, entry) if isinstance(entry, BypassEntry) else entry

    def _write(self, entry: BypassEntry) -> None:
        try:
            self._datapath.allow_bypass(entry)
        except OSError as error:  # the pair continues to use the proxy
            log.warning("bypass entry not written", error=str(error))
            return
        self.stats.entries_allowed += 1

    def _authorize(self, report: SameNodeAllowed, entry: BypassEntry) -> BypassEntry | str:
        target = self._pods.by_cookie(entry.destination_cookie)
        assert target is not None  # `validate` found it
        request = AuthzRequest(report.source_ip, report.source_identity, report.destination)
        decision = self._policies.decide(target.workload, request)
        return entry if decision.allowed else decision.reason

    def set_revision(self, revision: int) -> None:
        """Accept only reports that workers decided at this revision of the view."""
        self._revision = revision

    def revoke(self) -> None:
        """Revoke all entries: what they rest on is about to change."""
        self._datapath.revoke_bypass()

    def recheck(self) -> None:
        """Terminate the connections that are denied now. Call `revoke` before the change: then no
        connection that is missing here was admitted by an old entry."""
        self._has_unchecked = False
        if not len(self._policies):
            return
        pods = {pod.cookie: pod for pod in self._pods if pod.cookie}
        self.peers.refresh(self._pods)
        for connection in self._datapath.same_node_connections():
            source = pods.get(connection.netns_cookie)
            target = pods.get(connection.destination_cookie)
            if source is None or target is None:
                self._has_unchecked = True
                continue
            request = AuthzRequest(
                connection.source.ip, source.workload.identity, connection.destination
            )
            decision = self._policies.decide(target.workload, request)
            if not decision.allowed:
                self._deny(connection, decision)

    def _deny(self, connection: SameNodeConnection, decision: Decision) -> None:
        self.stats.denied += 1
        self._denied[connection.owner] = None
        while len(self._denied) > MAX_DENIED_SOCKETS:
            del self._denied[next(iter(self._denied))]
        self._terminate(connection)
        namespace = self.peers.namespace(connection.destination_cookie)
        wanted = is_wanted(self._logs.current, namespace, failed=True)
        if not wanted or not self._logs.admits(failed=True):
            return
        source, destination = str(connection.source), str(connection.destination)
        access_log.warning(
            "denied",
            direction="inbound",
            **self.peers.log_fields("src", connection.netns_cookie, source),
            **self.peers.log_fields("dst", connection.destination_cookie, destination),
            same_node=True,
            response_flags="DENY",
            policy=display_name(decision.policy),
            **({"rule": f"rules[{decision.rule}]"} if decision.rule >= 0 else {}),
            error=decision.reason,
        )

    def pop_denied(self, owner: int) -> bool:
        """Whether `recheck` terminated the connection of this socket; forgets the socket."""
        return self._denied.pop(owner, "") is None

    def pod_captured(self, pod: Pod) -> None:
        """Terminate the pod's bypassed connections of before this capture, which no current entry
        admitted."""
        self.peers.add(pod)
        for connection in self._datapath.same_node_connections():
            if pod.cookie in pair_of(connection):
                self._terminate(connection)

    def renew(self) -> None:
        """Renew the lease of the entries."""
        self._datapath.renew_bypass_lease(LEASE_S)
        self._datapath.purge_stale_bypass()
        failed, self._unterminated = self._unterminated, deque(maxlen=MAX_DENIED_SOCKETS)
        for connection in failed:
            self._terminate(connection)
        if self._has_unchecked:
            self.recheck()

    def quarantine(self, event: ConnectionEvent) -> None:
        """A peer other than the destination pod answered, or address translation changed the path:
        the pair uses the proxy from now on, as long as both pods live in these namespaces."""
        self._datapath.revoke_bypass()
        self._quarantined[pair_of(event)] = None
        while len(self._quarantined) > MAX_QUARANTINED_PAIRS:
            del self._quarantined[next(iter(self._quarantined))]
        self._terminate(event)

    def _terminate(self, connection: SameNodeConnection | ConnectionEvent) -> None:
        pod = self._pods.by_cookie(connection.netns_cookie)
        if pod is None or pod.netns is None:
            return  # the pod is gone with its sockets, or no longer enrolled
        is_isolated = isinstance(connection, ConnectionEvent)
        try:
            found = self._datapath.terminate(pod.netns.fd, connection, is_isolated=is_isolated)
        except OSError as error:
            log.error(
                "connection not terminated, will retry", pod=pod.workload.uid, error=str(error)
            )
            self._unterminated.append(connection)
            return
        self.stats.terminated += found

    def connections(self) -> list[dict[str, Any]]:
        """The established bypassed connections, as rows like the workers'."""
        self.peers.refresh(self._pods)
        now, boot = time.time(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return [
            {
                "direction": "outbound",
                "source": self.peers.describe(each.netns_cookie, str(each.source)),
                "destination": self.peers.describe(each.destination_cookie, str(each.destination)),
                "started": now - (boot - each.start_ns) / 1e9,
                "same_node": True,
            }
            for each in self._datapath.same_node_connections()
            if each.epoch and each.state is SameNodeState.ESTABLISHED
        ]

    def status(self) -> dict[str, Any]:
        """The section `same_node` of the status: mode, number of valid entries, counts."""
        return {
            "mode": self._mode.value,
            "bypass_entries": len(self._datapath.bypass_entries()),
            **msgspec.to_builtins(self.stats),
        }


class SameNodeRevocation(ViewConsumer):
    """Revokes all bypass entries before a change that affects authorization."""

    def __init__(self, bypass: SameNodeBypass) -> None:
        self._bypass = bypass

    def before(self, change: ViewChange) -> None:
        self._bypass.set_revision(change.revision)
        if change.affects_authorization:
            self._bypass.revoke()


class SameNodeRecheck(ViewConsumer):
    """Terminates the connections that such a change denies."""

    def __init__(self, bypass: SameNodeBypass) -> None:
        self._bypass = bypass

    def apply(self, change: ViewChange) -> None:
        if change.affects_authorization:
            self._bypass.recheck()


def pair_of(one: BypassEntry | SameNodeConnection | ConnectionEvent) -> tuple[int, int]:
    """The namespace cookies of source and destination."""
    return one.netns_cookie, one.destination_cookie
