# SPDX-License-Identifier: Apache-2.0
"""Starts the agent's components and runs them until a signal.

    lock the run directory -> load or adopt the data path -> CA -> watch the API or manifests
        -> first complete view: capture pods -> accept workers -> until SIGTERM or SIGINT

A stop closes sockets and descriptors only: the pins stay, and so does the pods' traffic.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import structlog

from ztunnel.agent import datapath, process_lock, wiring
from ztunnel.agent.api.metrics_health_server import PortTakenError
from ztunnel.agent.api.remote_admin_server import serve_remote_admin
from ztunnel.agent.cluster.node_addresses import sync_node_addresses
from ztunnel.agent.cluster.pod_status import run_pod_status
from ztunnel.agent.cluster.service_entry_dns import ServiceEntryResolver
from ztunnel.agent.config import Options
from ztunnel.agent.datapath import KernelDataPath
from ztunnel.agent.gateways.rejections import run_rejection_writer
from ztunnel.agent.periodic import every
from ztunnel.agent.traffic.policy_update import PolicyUpdate
from ztunnel.agent.traffic.same_node import (
    RENEWAL_INTERVAL_S,
    SameNodeRecheck,
    SameNodeRevocation,
)
from ztunnel.agent.traffic.same_node_events import READ_INTERVAL_S
from ztunnel.agent.wiring import Api, Cluster, Core, Gateways, Link, Pods, Traffic
from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.server import AgentLinkServer
from ztunnel.datapath.bpf import stats
from ztunnel.identity import ca
from ztunnel.ipc.gateway_messages import FromGateway
from ztunnel.kube.client.access import AccessError
from ztunnel.kube.view.publisher import ViewConsumer

PIN_CHECK_INTERVAL_S = 2.0  # takes about a millisecond
UDP_SWEEP_INTERVAL_S = 2.0
GATEWAY_PODS_INTERVAL_S = 0.25

log = structlog.get_logger()


class StartupError(Exception):
    """The agent can't start; the text contains a hint."""


def main(options: Options) -> None:
    """Run until a signal. Raises StartupError."""
    if os.geteuid() != 0:
        raise StartupError("the agent enters pods' namespaces and loads BPF; run it as root")
    try:
        process_lock.raise_descriptor_limit()
        lock = process_lock.lock(options.run_dir)
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
        with suppress(ModuleNotFoundError):  # without Kubernetes' client there are no Events
            from ztunnel.agent.cluster import node_failure_events  # noqa: PLC0415  the client is 20 MB

            await asyncio.to_thread(node_failure_events.emit, options, str(error))
        raise
    log.info("data path", pin_dir=str(options.pin_dir), result=loaded)
    agent = Agent(options, KernelDataPath(options.pin_dir), loaded)
    try:
        await agent.run(stop)
    finally:
        await agent.close()
        log.info("agent stopped", note="data path and traffic stay")


def view_consumers(
    core: Core, traffic: Traffic, pods: Pods, cluster: Cluster, link: Link
) -> tuple[ViewConsumer, ...]:
    """All consumers of the cluster view. Their order is part of the enforcement of policy."""
    return (
        # Bypass entries rest on the old state: none may admit a connection once a part of the
        # agent has the new one.
        SameNodeRevocation(traffic.same_node),
        # Every decision that the agent makes below is by the new policies.
        PolicyUpdate(core.policies),
        # Removes a port before any part of the agent acts on the new state, and before another pod
        # with the address is captured.
        traffic.gateway_ports,
        # Workers decide most connections, so they get the change before slower steps. They know a
        # workload before the enroller adds its pod.
        link.broadcast,
        # Routes depend on policies (mTLS modes), but not on which pods are captured.
        traffic.udp_redirect,
        # Captures and releases pods by the new state of their workloads.
        pods.selection,
        pods.loop,
        # The identities are those of the pods that the enroller has. A certificate is removed
        # after its last pod.
        cluster.certificates,
        # Decisions about the pods that are captured now, by the new policies.
        traffic.udp_authorizer,
        # Terminates what is denied by the new policies between the pods that are captured
        # now. Entries were revoked first, so no connection that this check misses used one.
        SameNodeRecheck(traffic.same_node),
        # After the revocation, and by the new policies and pods.
        traffic.waypoint_bypass,
    )


def gateway_consumers(gateways: Gateways) -> tuple[ViewConsumer, ...]:
    """The consumers that configure Envoys. They follow `view_consumers`: gateway pods are a subset
    of the captured ones, and Envoy's configuration is no part of the enforcement by this node."""
    return gateways.mesh, gateways.l7, gateways.pods


def session_observers(
    traffic: Traffic, pods: Pods, cluster: Cluster, link: Link, api: Api
) -> tuple[SessionObserver, ...]:
    """All observers of worker sessions, in the order in which they are notified.

    A worker that joins gets its log configuration, the mesh snapshot, certificates and pods: in
    this order, it can serve each pod at once. When the last worker leaves, bypass entries are
    revoked before anything else.
    """
    return (
        api.logs,
        traffic.same_node,
        link.broadcast,
        cluster.certificates,
        traffic.udp_redirect,
        pods.enroller,
        # Entries exist only while a worker does.
        traffic.waypoint_bypass,
        link.counters,
    )


def message_handlers(traffic: Traffic, pods: Pods, link: Link) -> MessageHandlers:
    """The handlers of all messages from workers."""
    handlers = MessageHandlers()
    pods.enroller.register(handlers)
    traffic.same_node.register(handlers)
    traffic.udp_redirect.register(handlers)
    link.counters.register(handlers)
    return handlers


def gateway_handlers(gateways: Gateways) -> MessageHandlers:
    """The handlers of all messages from the gateway process."""
    handlers = MessageHandlers(FromGateway)
    gateways.pods.register(handlers)
    gateways.rejected.register(handlers)
    gateways.queries.register(handlers)
    return handlers


class Agent:
    """All components of a running agent."""

    def __init__(self, options: Options, kernel: KernelDataPath, loaded: str) -> None:
        self._options = options
        self._kernel = kernel
        sees_node = kernel.find_node(wiring.cgroup_of(options))
        self._core = core = wiring.build_core(options, kernel)
        self._traffic = traffic = wiring.build_traffic(core)
        self._cluster = cluster = wiring.build_cluster(core)
        self._pods = pods = wiring.build_pods(core, traffic)
        self._link = link = wiring.build_link(core)
        self._gateways = gateways = wiring.build_gateways(core)
        data_path = wiring.build_data_path_view(
            core, traffic, pods, link, loaded=loaded, sees_node=sees_node
        )
        self._api = api = wiring.build_api(
            core, cluster, traffic, link, data_path, gateways=gateways
        )
        core.publisher.subscribe(
            (*view_consumers(core, traffic, pods, cluster, link), *gateway_consumers(gateways))
        )
        self._server = AgentLinkServer(
            options.agent_socket,
            options.proxy_uid,
            core.sessions,
            message_handlers(traffic, pods, link),
            session_observers(traffic, pods, cluster, link, api),
        )
        self._gateway_server = AgentLinkServer(
            options.gateway_socket,
            options.gateway_uid,
            gateways.sessions,
            gateway_handlers(gateways),
            (api.logs, gateways.mesh, gateways.l7, gateways.pods, gateways.queries),
            process="gateway",
        )
        self._bpf_stats = stats.enable_run_stats() if options.bpf_stats else -1

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, or a component fails for good."""
        await self._api.admin.start()
        await self._api.endpoints.start()
        self._cluster.issuer.start(self._cluster.certificates.store.set_roots)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(stop.wait(), name="stop"),
            *(
                asyncio.create_task(component, name=name)
                for name, component in (*self._always(), *self._once_synced())
            ),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises the failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _always(self) -> list[tuple[str, Coroutine[None, None, None]]]:
        """The tasks that run from the start."""
        core, traffic, cluster = self._core, self._traffic, self._cluster
        publish = wiring.publish_when_synced(cluster, core)
        return [
            ("configuration source", cluster.source.run()),
            ("ServiceEntry DNS", ServiceEntryResolver(core.view.entries, publish).run()),
            ("node addresses", sync_node_addresses(self._kernel, core.view, self._options.node)),
            ("BPF pins", every(PIN_CHECK_INTERVAL_S, self._kernel.pins.reconcile)),
            ("same-node lease", every(RENEWAL_INTERVAL_S, traffic.same_node.renew)),
            ("same-node events", every(READ_INTERVAL_S, traffic.same_node_events.read)),
            ("UDP redirect", every(UDP_SWEEP_INTERVAL_S, traffic.udp_redirect.sweep)),
            ("gateway pods", every(GATEWAY_PODS_INTERVAL_S, self._gateways.pods.reconcile)),
            ("gateway ports", every(UDP_SWEEP_INTERVAL_S, traffic.gateway_ports.reconcile)),
            ("UDP authorizer", every(UDP_SWEEP_INTERVAL_S, traffic.udp_authorizer.reconcile)),
        ]

    def _once_synced(self) -> list[tuple[str, Coroutine[None, None, None]]]:
        """The tasks that need the first complete view."""
        options, view = self._options, self._core.view
        series = self._api.metrics.run_expiry(view, options.series_ttl_s)
        tasks = [
            ("pods", self._pods.loop.run()),
            ("workers", self._accept_workers()),
            ("metric series", series),
        ]
        if options.access is not None:
            status = run_pod_status(
                options.access, options.node, view, self._core.pods, self._cluster.source
            )
            tasks.append(("pod status", status))
            gateways = self._gateways
            rejected = run_rejection_writer(
                options.access, options.node, view, gateways.pods, gateways.rejected
            )
            tasks.append(("rejected configuration", rejected))
        if options.access is not None and options.pod_name:
            tasks.append(("remote admin", serve_remote_admin(options.access, options, view)))
        return [(name, self._when_synced(task)) for name, task in tasks]

    async def _when_synced(self, task: Coroutine[None, None, None]) -> None:
        try:
            await self._cluster.source.synced.wait()
        except asyncio.CancelledError:
            task.close()
            raise
        await task

    async def _accept_workers(self) -> None:
        """Only with a complete view: a worker must not drop a pod that the agent does not know."""
        gc.collect()
        gc.freeze()  # the first view is most of the heap: the collector need not walk it again
        self._server.start()
        self._gateway_server.start()
        log.info("agent accepting workers", socket=str(self._options.agent_socket))
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Release everything but the pins."""
        await self._api.endpoints.close()
        await self._api.admin.close()
        self._server.close()
        self._gateway_server.close()
        self._gateways.pods.close()
        self._link.counters.close()
        self._traffic.udp_authorizer.close()
        await self._cluster.certificates.store.close()
        await asyncio.to_thread(self._cluster.issuer.close)
        self._pods.enroller.close()
        await asyncio.to_thread(self._pods.discovery.close)
        self._kernel.close()
        if self._bpf_stats >= 0:
            os.close(self._bpf_stats)
