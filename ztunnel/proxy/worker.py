# SPDX-License-Identifier: Apache-2.0
"""A worker: applies what the agent says, serves the pods' listeners, drains when told to stop.

SERVING --SIGTERM--> DRAINING --no connection left, or the deadline--> ended
                              --second signal--> ended
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from ztunnel import __version__, compiled
from ztunnel.ipc.messages import (
    Certificate,
    CertificateRemoved,
    CounterAck,
    Draining,
    Hello,
    IntrospectionReply,
    IntrospectionRequest,
    ListenerKind,
    LogConfig,
    MeshDelta,
    PodAdded,
    PodReady,
    PodRemoved,
    SocketRequest,
    Sockets,
    ToWorker,
    UdpSocketRequest,
    UdpSockets,
)
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.agent_link.counter_reporter import INTERVAL_S, CounterReporter
from ztunnel.proxy.agent_link.introspection import view
from ztunnel.proxy.agent_link.same_node_reporter import SameNodeReporter
from ztunnel.proxy.agent_link.session import Message, Session
from ztunnel.proxy.context import Context
from ztunnel.proxy.dns.tcp_server import QueryStreamServer
from ztunnel.proxy.dns.udp_server import QueryServer
from ztunnel.proxy.handlers.inbound import HboneServer
from ztunnel.proxy.handlers.inbound_passthrough import PassthroughServer
from ztunnel.proxy.handlers.outbound import OutboundServer
from ztunnel.proxy.handlers.udp import PodUdp
from ztunnel.proxy.io.listener import Listener
from ztunnel.proxy.io.sockets import adopt
from ztunnel.proxy.local_pod import Ask, Pod, take_sockets
from ztunnel.proxy.process.heartbeat import WorkerState
from ztunnel.proxy.process.signals import Signals
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tunnel.pool_key import PoolKey
from ztunnel.telemetry.logs import set_level

DRAIN_TIMEOUT_S = 5.0  # the default of Istio's ztunnel
DRAIN_CHECK = 0.05
BEAT = 0.5  # seconds between signs of life
GARBAGE = 50_000  # new objects after which the collector looks for cycles
SOCKET_NAME = "agent.sock"
FDS_PER_HELLO = 240  # SCM_MAX_FD is 253; more pods go into further Hellos

log = structlog.get_logger()


class Worker:
    """One process' whole data plane."""

    def __init__(
        self,
        context: Context,
        run_dir: Path,
        index: int = 0,
        drain: float = DRAIN_TIMEOUT_S,
        beat: Callable[[WorkerState], None] = lambda _: None,
    ) -> None:
        """`beat` is called while the loop turns, with how far the worker is."""
        self.context = context
        self.pods: dict[str, Pod] = {}
        self.session = Session(context.loop, str(run_dir / SOCKET_NAME), self._greet, self.receive)
        self._told = SameNodeReporter(self.session.send, lambda: context.loop.now)
        context.same_node_reporter = self._told
        self._counter_reporter = CounterReporter(self.session.send, context.tracker.counters)
        context.loop.call_later(INTERVAL_S, self._report_counters_periodically)
        self._index = index
        self._beat = beat
        self._incoming: MeshState | None = None  # a snapshot that is not complete yet
        self._parts: list[MeshDelta] = []  # of a change that is not complete yet
        self._ready: set[str] = set()  # pods we announced in this session
        self._leaving: list[Pod] = []  # removed, but with live connections
        self._draining = False
        self._drain_deadline = drain  # seconds

    def run(self) -> int:
        """Serve until drained; the process' exit status."""
        self._signals = Signals(self.context.loop, (signal.SIGTERM, signal.SIGINT), self._signalled)
        self._keep_beating()
        self.session.dial()
        gc.collect()
        gc.freeze()  # what lives now lives for ever: the collector need not look at it again
        gc.set_threshold(GARBAGE)  # ended connections leave no cycles: little to collect
        log.info("proxy started", worker=self._index, pid=os.getpid(), compiled=compiled.in_use())
        self.context.loop.run()
        log.info("proxy ended", worker=self._index)
        return 0

    # Messages of the agent

    def receive(self, message: ToWorker, fds: list[int]) -> None:
        """Act on one message; takes the descriptors it uses out of `fds`, closes the rest."""
        match message:
            case CounterAck():
                self._counter_reporter.acknowledged(message.seq)
            case LogConfig():
                set_level(message.process)
                self.context.tracker.access.settings = message
            case MeshDelta():
                self._mesh_changed(message)  # also in a drain: what is denied now ends now
            case _ if self._draining:
                pass  # nothing new is taken, whatever was on its way
            case Certificate():
                self._certificate(message)
            case CertificateRemoved():
                self.context.credentials.pop(message.identity, None)
            case PodAdded():
                self._pod_added(message, fds)
            case PodRemoved():
                self._pod_removed(message)
            case Sockets():
                pod = self.pods.get(message.pod_uid)
                take_sockets(pod, message.family, fds, udp=message.udp)
            case UdpSockets():
                self._udp_sockets(message, fds)
            case IntrospectionRequest():
                self._report_counters()
                body = view(message.what, self.context.tracker, self.context.pool)
                self.session.send(IntrospectionReply(message.id, msgspec.Raw(body)))
        while fds:
            os.close(fds.pop())

    def _mesh_changed(self, delta: MeshDelta) -> None:
        self._told.revision = 0
        if delta.reset:
            self._incoming = MeshState(delta.registry_only)
            self._parts.clear()
        if self._incoming is not None:
            self._incoming.apply(delta)
            if delta.complete:
                self.context.mesh, self._incoming = self._incoming, None
                log.info("mesh synced", revision=delta.revision)
                self._mesh_is_new(delta.revision, recheck=True)
        elif self.context.mesh is None:
            log.warning("mesh delta without snapshot", revision=delta.revision)
        else:
            self._parts.append(delta)
            if not delta.more:
                self._take_parts(self.context.mesh)

    def _take_parts(self, mesh: MeshState) -> None:
        """Apply a whole change in one turn: between its parts a policy could be gone."""
        parts, self._parts = self._parts, []
        for part in parts:
            mesh.apply(part)
        self._mesh_is_new(parts[-1].revision, recheck=any(map(self._concerns_policy, parts)))

    def _concerns_policy(self, delta: MeshDelta) -> bool:
        """Whether other connections may be allowed to our pods than before."""
        changed = {workload.uid for workload in delta.workloads}.union(delta.removed_workloads)
        ours = {pod.workload for pod in self.pods.values()}
        return bool(delta.policies or delta.removed_policies or changed & ours)

    def _mesh_is_new(self, revision: int, *, recheck: bool) -> None:
        mesh = self.context.mesh
        if recheck and mesh is not None:
            self.context.admissions.recheck(mesh)
        self._told.revision = revision
        self.context.pool.invalidate(self._is_stale, "workload changed", fail_waiting=True)

    def _is_stale(self, key: PoolKey) -> bool:
        """Whether the tunnel's destination is not any more the workload it was made for."""
        mesh = self.context.mesh
        workload = mesh.workload_at(key.address.ip) if mesh is not None else None
        return workload is None or (workload.uid, workload.pod_uid) != (
            key.workload,
            key.workload_pod,
        )

    def _certificate(self, message: Certificate) -> None:
        try:
            self.context.credentials[message.identity] = credentials.load_credentials(message)
        except ValueError as error:
            log.error("certificate unusable", identity=message.identity, error=str(error))
            return
        log.info("certificate", identity=message.identity, not_after=message.not_after)
        self.context.pool.invalidate(
            lambda key: key.source == message.identity, "certificate renewed", fail_waiting=False
        )
        for pod in self.pods.values():
            self._announce(pod)

    def _pod_added(self, added: PodAdded, fds: list[int]) -> None:
        pod = self.pods.get(added.pod_uid)
        if pod is None:
            pod = Pod(self.context.loop, added, self._asker(added.pod_uid))
            self.pods[added.pod_uid] = pod
            log.info("pod added", pod=added.workload, identity=added.identity)
        else:
            pod.update(added)
        for kind in added.listeners:
            self._listen(pod, kind, fds.pop(0))
        pod.refill()
        self.session.send(UdpSocketRequest(pod.uid, pod.udp.port if pod.udp is not None else 0))
        self._announce(pod)

    def _udp_sockets(self, message: UdpSockets, fds: list[int]) -> None:
        pod = self.pods.get(message.pod_uid)
        if pod is None or not fds:
            return
        if pod.udp is not None:
            pod.udp.drain()
        socks = [socket.socket(fileno=fds.pop(0)) for _ in fds[:2]]
        for sock in socks:
            sock.setblocking(False)
        pod.udp = PodUdp(self.context, pod, socks, silent=self.session.send)

    def _pod_removed(self, removed: PodRemoved) -> None:
        pod = self.pods.pop(removed.pod_uid, None)
        self._ready.discard(removed.pod_uid)
        if pod is None:
            return
        log.info("pod removed", pod=pod.workload, gone=removed.gone)
        self.context.pool.invalidate(
            lambda key: key.pod_uid == pod.uid, "pod removed", fail_waiting=True
        )
        pod.close("pod removed", abort=removed.gone)
        self._leaving = [one for one in [*self._leaving, pod] if one.live]

    # Words to the agent

    def _report_counters(self) -> None:
        if self.session.is_up:
            self.context.tracker.count_bytes()
            self._counter_reporter.report()

    def _report_counters_periodically(self) -> None:
        self._report_counters()
        self.context.loop.call_later(INTERVAL_S, self._report_counters_periodically)

    def _keep_beating(self) -> None:
        state = WorkerState.SERVING if self.context.mesh is not None else WorkerState.STARTING
        self._beat(WorkerState.DRAINING if self._draining else state)
        self.context.loop.call_later(BEAT, self._keep_beating)

    def _greet(self) -> list[Message]:
        """Hello with the listeners we hold; several when they exceed one message's room."""
        self._ready.clear()
        self._told.revision = 0  # what we know is another agent's
        greetings: list[Message] = []
        pods: list[Pod] = []
        for pod in [*self.pods.values(), None]:
            count = sum(len(one.listeners) for one in pods)
            full = pod is not None and count + len(pod.listeners) > FDS_PER_HELLO
            if pod is None or full:
                greetings.append(self._hello(pods))
                pods = []
            if pod is not None:
                pod.reset_socket_requests()
                pods.append(pod)
        greetings += ((report, ()) for report in self._counter_reporter.pending)
        return greetings

    def _hello(self, pods: list[Pod]) -> Message:
        held = [pod.held() for pod in pods]
        hello = Hello(
            version=__version__,
            pid=os.getpid(),
            worker=self._index,
            pods=tuple(pod for pod, _ in held),
        )
        return hello, [fd for _, fds in held for fd in fds]

    def _announce(self, pod: Pod) -> None:
        """Say once a session that the pod is served: it has listeners and its certificate."""
        if pod.uid in self._ready or not pod.listeners:
            return
        if pod.identity in self.context.credentials:
            self._ready.add(pod.uid)
            self.session.send(PodReady(pod.uid))

    def _asker(self, pod_uid: str) -> Ask:
        def ask(family: int, count: int, udp: bool) -> None:
            self.session.send(SocketRequest(pod_uid, family, count, udp))

        return ask

    # Listeners

    def _listen(self, pod: Pod, kind: ListenerKind, fd: int) -> None:
        family = kind.family
        if kind.is_query:
            pod.listen(kind, QueryServer(self.context, pod, adopt(fd, family, udp=True)))
            return
        server: OutboundServer | PassthroughServer | HboneServer | QueryStreamServer
        if kind in (ListenerKind.OUTBOUND4, ListenerKind.OUTBOUND6):
            server = OutboundServer(self.context, pod)
        elif kind in (ListenerKind.INBOUND4, ListenerKind.INBOUND6):
            server = PassthroughServer(self.context, pod)
        elif kind in (ListenerKind.DNS4, ListenerKind.DNS6):
            server = QueryStreamServer(self.context, pod)
        else:
            server = HboneServer(self.context, pod)
        sock = adopt(fd, family)
        listener = Listener(
            self.context.loop,
            sock,
            server.accepted,
            self.context.tracker.accept_paused,
            resets=not isinstance(server, HboneServer),
            shared=self.context.workers > 1,
        )
        pod.listen(kind, listener)

    # The end

    def _signalled(self, numbers: bytes) -> None:
        if self._draining:
            self.context.loop.stop()
        else:
            self.drain(self._drain_deadline)

    def drain(self, deadline: float) -> None:
        """Take nothing new, let live connections end, reset the rest at the deadline."""
        self._draining = True
        log.info("draining", connections=len(self.context.tracker.live()), deadline=deadline)
        self.session.leave(Draining())  # the agent lets go of its copies: new ones are refused
        self.context.pool.invalidate(lambda _: True, "draining", fail_waiting=False)
        for pod in self.pods.values():
            pod.close("draining", abort=False)
        self._end_by = self.context.loop.now + deadline
        self._check_drained()

    def _check_drained(self) -> None:
        loop = self.context.loop
        pods = [*self.pods.values(), *self._leaving]
        if (self.context.pool.open or any(pod.live for pod in pods)) and loop.now < self._end_by:
            loop.call_later(DRAIN_CHECK, self._check_drained)
            return
        for pod in pods:
            pod.close("drain deadline", abort=True)
        loop.defer(self._ended)

    def _ended(self) -> None:
        """All is counted: say the last of it."""
        self._report_counters()
        self.session.stop()
        self.context.loop.stop()
