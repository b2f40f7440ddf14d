# SPDX-License-Identifier: Apache-2.0
"""A worker process: acts on the agent's messages, serves the pods' listeners, and drains.

STARTING --mesh synced--> SERVING --SIGTERM--> DRAINING --no live connection--> exit
                                                   | drain timeout: reset the rest --> exit
                                                   | second signal                 --> exit
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
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
from ztunnel.proxy.agent_link.counter_reporter import INTERVAL_S, CounterReporter
from ztunnel.proxy.agent_link.introspection import view
from ztunnel.proxy.agent_link.same_node_reporter import SameNodeReporter
from ztunnel.proxy.agent_link.session import Message, Session
from ztunnel.proxy.context import Context
from ztunnel.proxy.handlers.inbound import HboneConnection
from ztunnel.proxy.handlers.udp import PodUdp
from ztunnel.proxy.handlers.waypoint_handover import WaypointHandover
from ztunnel.proxy.listeners import add_listener
from ztunnel.proxy.local_pod import Pod, RequestSockets, add_sockets
from ztunnel.proxy.mesh_sync import MeshSync
from ztunnel.proxy.process.heartbeat import WorkerState
from ztunnel.proxy.process.memory import TRIM_INTERVAL_S, MemoryTrimmer
from ztunnel.proxy.process.signals import Signals
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tunnel.tunnel import Tunnel
from ztunnel.telemetry.logs import set_level

DRAIN_TIMEOUT_S = 5.0  # the default of Istio's ztunnel
DRAIN_CHECK_INTERVAL_S = 0.05
HEARTBEAT_INTERVAL_S = 0.5
GC_THRESHOLD = 50_000  # container objects allocated between collections
VERIFY_BATCH = 4  # chains per turn, about a millisecond
SOCKET_NAME = "agent.sock"
MAX_FDS_PER_HELLO = 240  # below SCM_MAX_FD (253); the rest goes into further messages

log = structlog.get_logger()


class Worker:
    """The data plane of one process."""

    def __init__(
        self,
        context: Context,
        run_dir: Path,
        index: int = 0,
        drain_timeout: float = DRAIN_TIMEOUT_S,
        send_heartbeat: Callable[[WorkerState], None] = lambda _: None,
    ) -> None:
        """The event loop calls `send_heartbeat` periodically with the worker's state."""
        self.context = context
        self.pods = context.pods
        self.session = Session(context.loop, str(run_dir / SOCKET_NAME), self._greet, self.receive)
        context.same_node_reporter = SameNodeReporter(self.session.send, lambda: context.loop.now)
        self._mesh_sync = MeshSync(context, self.pods, context.same_node_reporter)
        self._counter_reporter = CounterReporter(self.session.send, context.tracker.counters)
        context.loop.call_later(INTERVAL_S, self._report_counters_periodically)
        self._trimmer = MemoryTrimmer(lambda: context.budget.used)
        context.loop.call_later(TRIM_INTERVAL_S, self._trim_periodically)
        self._index = index
        self._send_heartbeat = send_heartbeat
        self._announced: set[str] = set()  # uids of the pods that are ready in this session
        self._removed: list[Pod] = []  # pods that still have live connections
        self._draining = False
        self._drain_timeout = drain_timeout
        self._drain_deadline = 0.0

    def run(self) -> int:
        """Serve until drained; the process's exit status."""
        self._signals = Signals(
            self.context.loop, (signal.SIGTERM, signal.SIGINT), self._on_signals
        )
        self._send_heartbeats()
        self.session.dial()
        gc.collect()
        gc.freeze()  # all present objects are permanent: exclude them from collections
        gc.set_threshold(GC_THRESHOLD)  # closed connections leave no cycles
        log.info(
            "proxy started", worker=self._index, pid=os.getpid(), compiled=compiled.is_loaded()
        )
        self.context.loop.run()
        log.info("proxy stopped", worker=self._index)
        return 0

    # Messages from the agent

    def receive(self, message: ToWorker, fds: list[int]) -> None:
        """Act on a message. Removes the descriptors that it uses from `fds`, closes the rest."""
        match message:
            case CounterAck():
                self._counter_reporter.acknowledged(message.seq)
            case LogConfig():
                set_level(message.process)
                self.context.tracker.access.settings = message
            case MeshDelta():
                self._mesh_sync.apply(message)  # policy is enforced during a drain, too
            case Certificate():
                self._on_certificate(message)  # during a drain, too: it may remove roots
            case _ if self._draining:
                pass  # no new work
            case CertificateRemoved():
                self.context.credentials.pop(message.identity, None)
            case PodAdded():
                self._on_pod_added(message, fds)
            case PodRemoved():
                self._on_pod_removed(message)
            case Sockets():
                pod = self.pods.get(message.pod_uid)
                add_sockets(pod, message.family, fds, udp=message.udp)
            case UdpSockets():
                self._on_udp_sockets(message, fds)
            case IntrospectionRequest():
                self._report_counters()
                context = self.context
                body = view(message.what, context.tracker, context.pool, context.budget)
                self.session.send(IntrospectionReply(message.id, msgspec.Raw(body)))
        while fds:
            os.close(fds.pop())

    def _on_certificate(self, message: Certificate) -> None:
        previous = self.context.credentials.get(message.identity)
        try:
            loaded = credentials.load_credentials(message)
        except ValueError as error:
            log.error("certificate unusable", identity=message.identity, error=str(error))
            return
        self.context.credentials[message.identity] = loaded
        if previous is not None:
            previous.successor = loaded
        log.info("certificate received", identity=message.identity, not_after=message.not_after)
        self.context.pool.invalidate(
            lambda key: key.source == message.identity, "certificate renewed", fail_waiting=False
        )
        if previous is None or not set(previous.roots) <= set(loaded.roots):
            self._verify_peers(loaded, deque(self._authenticated(message.identity)))
        for pod in self.pods.values():
            self._announce(pod)

    def _authenticated(self, identity: str) -> Iterator[Tunnel | WaypointHandover]:
        """What pods of an identity have authenticated a peer for, draining tunnels too."""
        for tunnel, key in self.context.pool.open.items():
            if key.source == identity:
                yield tunnel
        for pod in [*self.pods.values(), *self._removed]:
            for connection in pod.live:
                match connection:
                    case WaypointHandover() if identity in connection.identities:
                        yield connection
                    case HboneConnection(tunnel=Tunnel() as tunnel) if pod.identity == identity:
                        yield tunnel

    def _verify_peers(
        self, loaded: credentials.Credentials, pending: deque[Tunnel | WaypointHandover]
    ) -> None:
        """Close those whose peer no root is left for. A batch per turn: others wait."""
        for _ in range(min(len(pending), VERIFY_BATCH)):
            pending.popleft().close_if_untrusted(loaded)
        if pending:
            self.context.loop.defer(partial(self._verify_peers, loaded, pending))

    def _on_pod_added(self, added: PodAdded, fds: list[int]) -> None:
        pod = self.pods.get(added.pod_uid)
        if pod is None:
            share = self.context.budget.new_share()
            request_sockets = self._socket_requester(added.pod_uid)
            pod = Pod(self.context.loop, added, request_sockets, share)
            self.pods[added.pod_uid] = pod
            log.info("pod added", pod=added.workload, identity=added.identity)
        else:
            pod.update(added)
        for kind in added.listeners:
            add_listener(self.context, pod, kind, fds.pop(0))
        pod.refill()
        self.session.send(UdpSocketRequest(pod.uid, pod.udp.port if pod.udp is not None else 0))
        self._announce(pod)

    def _on_udp_sockets(self, message: UdpSockets, fds: list[int]) -> None:
        pod = self.pods.get(message.pod_uid)
        if pod is None or not fds:
            return
        if pod.udp is not None:
            pod.udp.drain()
        socks = [socket.socket(fileno=fds.pop(0)) for _ in fds[:2]]
        for sock in socks:
            sock.setblocking(False)
        pod.udp = PodUdp(self.context, pod, socks, on_unsupported=self.session.send)

    def _on_pod_removed(self, removed: PodRemoved) -> None:
        pod = self.pods.pop(removed.pod_uid, None)
        self._announced.discard(removed.pod_uid)
        if pod is None:
            return
        log.info("pod removed", pod=pod.workload, gone=removed.gone)
        self.context.pool.invalidate(
            lambda key: key.pod_uid == pod.uid, "pod removed", fail_waiting=True
        )
        pod.close("pod removed", abort=removed.gone)
        self._removed = [one for one in [*self._removed, pod] if one.live]

    # Messages to the agent

    def _greet(self) -> list[Message]:
        """The first messages of a session: the listeners held, and unacknowledged reports."""
        self._announced.clear()
        self._mesh_sync.session_started()
        messages: list[Message] = []
        pods: list[Pod] = []
        for pod in self.pods.values():
            pod.reset_socket_requests()
            count = sum(len(one.listeners) for one in (*pods, pod))
            if pods and count > MAX_FDS_PER_HELLO:
                messages.append(self._hello(pods))
                pods = []
            pods.append(pod)
        messages.append(self._hello(pods))
        messages += ((report, ()) for report in self._counter_reporter.pending)
        return messages

    def _hello(self, pods: list[Pod]) -> Message:
        held = [pod.held_listeners() for pod in pods]
        hello = Hello(
            version=__version__,
            pid=os.getpid(),
            worker=self._index,
            pods=tuple(pod for pod, _ in held),
        )
        return hello, [fd for _, fds in held for fd in fds]

    def _announce(self, pod: Pod) -> None:
        """Report once per session that the pod is served: it has listeners and a certificate."""
        if pod.uid in self._announced or not pod.listeners or self._draining:
            return
        if pod.identity in self.context.credentials:
            self._announced.add(pod.uid)
            self.session.send(PodReady(pod.uid))

    def _socket_requester(self, pod_uid: str) -> RequestSockets:
        def request(family: int, count: int, udp: bool) -> None:
            self.session.send(SocketRequest(pod_uid, 6 if family == 6 else 4, count, udp))

        return request

    def _report_counters(self) -> None:
        if self.session.is_up:
            self.context.tracker.count_bytes()
            self._counter_reporter.report()

    def _trim_periodically(self) -> None:
        self.context.loop.call_later(TRIM_INTERVAL_S, self._trim_periodically)
        self._trimmer.check()

    def _report_counters_periodically(self) -> None:
        self._report_counters()
        self.context.loop.call_later(INTERVAL_S, self._report_counters_periodically)

    # Heartbeats and draining

    @property
    def state(self) -> WorkerState:
        if self._draining:
            return WorkerState.DRAINING
        return WorkerState.SERVING if self.context.mesh is not None else WorkerState.STARTING

    def _send_heartbeats(self) -> None:
        self._send_heartbeat(self.state)
        self.context.loop.call_later(HEARTBEAT_INTERVAL_S, self._send_heartbeats)

    def _on_signals(self, numbers: bytes) -> None:
        if self._draining:
            self.context.loop.stop()
        else:
            self.drain(self._drain_timeout)

    def drain(self, timeout: float) -> None:
        """Accept no new work, let live connections finish, reset the rest after `timeout` s."""
        self._draining = True
        log.info("worker draining", connections=len(self.context.tracker.live()), timeout=timeout)
        self.session.close_after(Draining())  # the agent closes its copies of the listeners
        self.context.pool.invalidate(lambda _: True, "draining", fail_waiting=False)
        for pod in self.pods.values():
            pod.close("draining", abort=False)
        self._drain_deadline = self.context.loop.now + timeout
        self._check_drained()

    def _check_drained(self) -> None:
        loop = self.context.loop
        pods = [*self.pods.values(), *self._removed]
        has_work = self.context.pool.open or any(pod.live for pod in pods)
        if has_work and loop.now < self._drain_deadline:
            loop.call_later(DRAIN_CHECK_INTERVAL_S, self._check_drained)
            return
        for pod in pods:
            pod.close("drain timeout", abort=True)
        loop.defer(self._drained)

    def _drained(self) -> None:
        """All connections are counted: send the last report."""
        self._report_counters()
        self.session.stop()
        self.context.loop.stop()
