# SPDX-License-Identifier: Apache-2.0
"""Puts the agent's parts together and runs them until a signal.

    claim the run directory -> load or adopt the data path -> CA -> watch the API or manifests
        -> first complete view: capture pods -> let workers dial -> until SIGTERM or SIGINT

Stopping closes sockets and descriptors only: pins, and so the pods' traffic, stay.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress

import structlog

from ztunnel.agent import datapath, process_lock
from ztunnel.agent.api.admin_server import Admin, Json
from ztunnel.agent.api.admin_views import AgentViews
from ztunnel.agent.api.log_level import LogControl
from ztunnel.agent.api.metrics_collector import Metrics
from ztunnel.agent.api.metrics_health_server import Endpoints, PortTakenError
from ztunnel.agent.api.remote_admin_server import AnnotationStore, Door
from ztunnel.agent.cluster import service_accounts
from ztunnel.agent.cluster.certificate_issuer import certifier_of
from ztunnel.agent.cluster.config_source import source_of
from ztunnel.agent.cluster.pod_status import PodStatusReporter
from ztunnel.agent.cluster.service_entry_dns import ServiceEntryResolver
from ztunnel.agent.config import Options, SameNode
from ztunnel.agent.datapath import KernelDataPath
from ztunnel.agent.dispatcher import Dispatcher
from ztunnel.agent.pods.cgroup_discovery import Discovery
from ztunnel.agent.pods.cri_discovery import RuntimeDiscovery, dialler
from ztunnel.agent.pods.enroller import Enroller
from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.traffic.same_node import READ_EVERY, RENEWAL, SameNodeTraffic
from ztunnel.agent.traffic.same_node_metrics import KernelCounts
from ztunnel.agent.traffic.udp_authorizer import UdpAuthorizer
from ztunnel.agent.traffic.udp_redirect import Udp
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.agent.workers.counter_collector import CounterCollector
from ztunnel.agent.workers.session import Workers
from ztunnel.datapath.bpf import stats
from ztunnel.datapath.netlink import rtnetlink
from ztunnel.datapath.requirements import cgroup2_root
from ztunnel.identity import ca
from ztunnel.identity.certificate_store import CertificateStore
from ztunnel.ipc.messages import LogConfig
from ztunnel.kube.admin_endpoint import ANNOTATION
from ztunnel.kube.client.access import AccessError
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.mesh.model import DEFAULT_CLUSTER
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.telemetry import labels
from ztunnel.telemetry.logs import set_level
from ztunnel.telemetry.node_counters import NodeCounters, TrafficTotals
from ztunnel.telemetry.same_node_rtt import RttTable

FIRST_RETRY = 0.05  # seconds until a pod that could not be captured is tried again
RETIRE = 10.0  # seconds between looks for series of workloads that are gone
STEP = 250  # workloads looked at before others have their turn
RECHECK = 2.0  # seconds between looks at what nothing tells us of

log = structlog.get_logger()


class StartupError(Exception):
    """The agent can't start; the text says what to do."""


def main(options: Options) -> None:
    """Run until a signal. Raises StartError."""
    if os.geteuid() != 0:
        raise StartupError("the agent enters pods' namespaces and loads BPF; run it as root")
    try:
        process_lock.allow_many_descriptors()
        lock = process_lock.claim(options.run_dir)
        try:
            asyncio.run(_until_signal(options))
        finally:
            os.close(lock)
    except (
        process_lock.AlreadyRunningError,
        datapath.LoadFailedError,
        ca.CaError,
        PortTakenError,
        AccessError,
        OSError,
    ) as error:
        raise StartupError(str(error)) from error


async def _until_signal(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        loaded = await datapath.load(options.cgroup, options.pin_dir)
    except datapath.LoadFailedError as error:
        with suppress(ModuleNotFoundError):  # without Kubernetes' client there is nobody to tell
            from ztunnel.agent.cluster import node_failure_events  # noqa: PLC0415  the client is 20 MB

            await asyncio.to_thread(node_failure_events.tell, options, str(error))
        raise
    log.info("data path", pin_dir=str(options.pin_dir), result=loaded)
    agent = Agent(options, KernelDataPath(options.pin_dir), loaded)
    try:
        await agent.run(stop)
    finally:
        await agent.close()
        log.info("agent ended", note="data path and traffic stay")


class Agent:
    """All parts of a running agent."""

    def __init__(self, options: Options, kernel: KernelDataPath, loaded: str) -> None:
        self._options = options
        self._kernel = kernel
        self._loaded = loaded
        self._cgroup = options.cgroup or cgroup2_root()
        self._sees_node = kernel.find_node(self._cgroup)
        self._certifier = certifier_of(options)
        self._mirror = ClusterView(
            options.trust_domain,
            DEFAULT_CLUSTER,
            root_namespace=options.root_namespace,
            discovery=options.discovery,
            marks=options.access is not None,
        )
        self._policies = PolicyEngine()
        totals, paths = TrafficTotals(options.most_series), RttTable(options.most_series)
        self._counters = NodeCounters(totals)
        self._counter_collector = CounterCollector(self._counters)
        self._same_node = SameNodeTraffic(
            kernel,
            options.same_node,
            lambda: self._enroller.pods,
            self._policies,
            KernelCounts(totals, paths),
        )
        self._discovery = RuntimeDiscovery(
            dialler(options.cri_socket), Discovery(self._cgroup), self._runtime_answered
        )
        self._enroller = Enroller(
            kernel,
            self._discovery,
            lambda: self._workers,
            self._captured,
        )
        ways = UdpRouteTable(
            options.node, self._policies, encrypted=options.same_node is SameNode.ENCRYPT
        )
        self._judge = UdpAuthorizer(
            kernel.udp_entry,
            self._policies,
            lambda: self._enroller.pods,
            ways.workload_at,
            mode=options.same_node,
            count=totals.add,
        )
        self._same_node.strict = self._judge.refused
        self._udp = Udp(
            kernel.udp,
            ways,
            lambda: self._enroller.pods,
            lambda: self._workers.sessions,
            time.monotonic,
        )
        self._feed = Dispatcher(
            node=options.node,
            mirror=self._mirror,
            enroller=self._enroller,
            same_node=self._same_node,
            udp=self._udp,
            judge=self._judge,
            policies=self._policies,
            workers=lambda: self._workers,
            store=lambda: self._store,
            greet=lambda session: session.send(self._logs.settings),
            registry_only=options.registry_only,
        )
        self._store = CertificateStore(
            self._certifier.signer,
            self._feed.certified,
            blocked_reason=lambda identity: service_accounts.missing_of(self._source, identity),
        )
        self._workers = Workers(
            options.agent_socket, options.proxy_uid, self._feed, self._counter_collector
        )
        self._source = source_of(options, self._mirror, self._changed)
        self._nudge = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        views = AgentViews(
            options=options,
            mirror=self._mirror,
            enroller=self._enroller,
            workers=self._workers,
            same_node=self._same_node,
            store=self._store,
            policies=self._policies,
            source=self._source_view,
            data_path=self._data_path_view,
        )
        self._logs = LogControl(self._log_as)
        self._admin = Admin(options.admin_socket, views, self._logs)
        self._metrics = Metrics(
            totals=totals,
            paths=paths,
            dns=self._counters.dns,
            status=views,
            workers=self._workers,
            read_events=self._same_node.read,
            pin_dir=options.pin_dir,
        )
        self._endpoints = Endpoints(
            page=self._metrics.page,
            waiting_for=views.waiting_for,
            listen=options.listen,
            metrics_port=options.metrics_port,
            health_port=options.health_port,
        )
        self._bpf_stats = stats.enable_run_stats() if options.bpf_stats else -1

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, or a part fails for good."""
        await self._admin.start()
        await self._endpoints.start()
        self._certifier.start(self._store.set_roots)
        parts = [
            asyncio.create_task(part, name=name)
            for name, part in (
                ("stop", _waited(stop)),
                ("source", self._source.run()),
                (
                    "names outside",
                    ServiceEntryResolver(self._mirror.entries, self._changed_outside).run(),
                ),
                ("pods", self._keep_pods()),
                ("node addresses", self._keep_node_addresses()),
                ("workers", self._serve_workers()),
                ("verdicts", _every(RENEWAL, self._same_node.renew)),
                ("UDP", _every(RECHECK, self._udp.sweep)),
                ("UDP judge", _every(RECHECK, self._judge.keep)),
                ("events", _every(READ_EVERY, self._same_node.read)),
                ("series", self._retire_series()),
                ("signs", self._show_signs()),
                ("admin port", self._open_door()),
            )
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()  # raises what it failed with
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def close(self) -> None:
        """Let go of everything but the pins."""
        await self._endpoints.close()
        await self._admin.close()
        self._workers.close()
        self._counter_collector.close()
        self._judge.close()
        await self._store.close()
        await asyncio.to_thread(self._certifier.close)
        self._enroller.close()
        await asyncio.to_thread(self._discovery.close)
        self._kernel.close()
        if self._bpf_stats >= 0:
            os.close(self._bpf_stats)

    def _log_as(self, settings: LogConfig) -> None:
        set_level(settings.process)
        self._same_node.logging = self._judge.logging = settings
        self._workers.broadcast(settings)

    def _captured(self, pod: Pod) -> None:
        self._same_node.captured(pod)
        self._judge.captured(pod)

    async def _retire_series(self) -> None:
        """In steps: to name 20,000 workloads takes as long as others may wait for their turn."""
        await self._source.synced.wait()
        while True:
            living: set[labels.WorkloadLabels] = set()
            for number, workload in enumerate(self._mirror.snapshot().workloads, 1):
                living.add(labels.workload_labels(workload))
                if number % STEP == 0:
                    await asyncio.sleep(0)
            self._metrics.retire(living, self._options.retire_after)
            await asyncio.sleep(RETIRE)

    def _changed(self) -> None:
        self._feed.changed()
        self._nudge.set()

    def _changed_outside(self) -> None:
        if self._source.synced.is_set():  # before, the first view will have it
            self._changed()

    def _runtime_answered(self) -> None:
        """From the thread that asks."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._nudge.set)

    async def _serve_workers(self) -> None:
        """Only once we know which pods there are: a worker must not drop one for our ignorance."""
        await self._source.synced.wait()
        gc.collect()
        gc.freeze()  # the first view is most of the heap: the collector need not walk it again
        self._workers.start()
        log.info("agent serves", socket=str(self._options.agent_socket))
        await asyncio.Event().wait()

    async def _keep_pods(self) -> None:
        """Try again what did not work, soon at first; look at all pods now and then."""
        await self._source.synced.wait()
        delay = FIRST_RETRY
        while True:
            self._nudge.clear()
            if self._enroller.is_settled:
                delay = RECHECK
            try:
                async with asyncio.timeout(delay):
                    await self._nudge.wait()
                delay = FIRST_RETRY
            except TimeoutError:
                delay = min(delay * 2, RECHECK)
            _attempt(self._enroller.recheck if delay == RECHECK else self._enroller.advance)

    async def _keep_node_addresses(self) -> None:
        known: set[str] = set()
        while True:
            try:
                own = rtnetlink.reachable_addresses()  # the kubelet's probes come from one of them
                now = {*own, *self._mirror.node_addresses(self._options.node)}
                if now != known:
                    self._kernel.set_node_addresses(now)
                    known = now
            except OSError as error:
                log.warning("node addresses unknown", error=str(error))
            await asyncio.sleep(RECHECK)

    async def _show_signs(self) -> None:
        """Only an API server has a place for them."""
        if self._options.access is None:
            await asyncio.Event().wait()
            return
        await self._source.synced.wait()
        with closing(PodWriter(self._options.access.client(), self._options.node)) as marker:
            signs = PodStatusReporter(
                self._options.node,
                self._mirror,
                self._enroller,
                marker,
                lambda pod: service_accounts.missing(
                    self._source, pod.namespace, pod.service_account
                ),
            )
            await signs.run()

    async def _open_door(self) -> None:
        """Only a pod has a place to say where it is."""
        options = self._options
        if options.access is None or not options.pod:
            await asyncio.Event().wait()
            return
        from ztunnel.kube.writers.token_review import TokenReviewer  # noqa: PLC0415  imports Kubernetes' client

        await self._source.synced.wait()
        place = options.namespace, options.pod
        with closing(PodWriter(options.access.client(), options.node)) as marker:
            pod = AnnotationStore(
                said=lambda: self._mirror.annotation(*place, ANNOTATION),
                say=lambda text: marker.note(*place, ANNOTATION, text),
            )
            door = Door(
                options.admin_socket, TokenReviewer(marker.client, options.namespace).refusal
            )
            try:
                await asyncio.gather(door.serve(), door.announce(pod))
            finally:
                await door.close()

    def _source_view(self) -> Json:
        return {
            **self._source.view(),
            "synced": self._source.synced.is_set(),
            "revision": self._feed.revision,
            "errors": {**self._source.errors(), **self._mirror.errors()},
        }

    def _data_path_view(self) -> Json:
        return {
            "cgroup": str(self._cgroup),
            "node_known_by": "socket" if self._sees_node else "address",
            "pin_dir": str(self._options.pin_dir),
            "loaded": self._loaded,
            "stats": self._kernel.stats(),
            "udp": {
                **self._udp.view(),
                "judged": self._judge.view(),
                "dropped": dict(self._counters.udp_drops.by_reason),
            },
            "container_runtime": self._discovery.view(),
        }


async def _every(seconds: float, step: Callable[[], None]) -> None:
    while True:
        _attempt(step)
        await asyncio.sleep(seconds)


async def _waited(event: asyncio.Event) -> None:
    await event.wait()


def _attempt(step: Callable[[], None]) -> None:
    """What fails is tried again at the next turn; the agent goes on."""
    try:
        step()
    except OSError as error:
        log.error("step failed, tried again", step=step.__name__, error=str(error))
