# SPDX-License-Identifier: Apache-2.0
"""Builds the agent's components, area by area.

    Core --> Traffic, Cluster, Link, Gateways --> Pods --> Api

Each area gets the earlier ones that it needs; nothing is set after construction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ztunnel.agent.api.admin_server import AdminServer
from ztunnel.agent.api.admin_views import AgentViews
from ztunnel.agent.api.data_path_view import DataPathView
from ztunnel.agent.api.gateway_views import GatewayViews
from ztunnel.agent.api.log_level import LogControl
from ztunnel.agent.api.metrics_collector import MetricsCollector
from ztunnel.agent.api.metrics_health_server import MetricsHealthServer
from ztunnel.agent.cluster import service_accounts
from ztunnel.agent.cluster.certificate_issuer import CertificateIssuer, certificate_issuer_of
from ztunnel.agent.cluster.certificates import NodeCertificates
from ztunnel.agent.cluster.config_source import ConfigSource, config_source_of
from ztunnel.agent.config import Options, SameNode
from ztunnel.agent.datapath import KernelDataPath
from ztunnel.agent.gateways.broadcast import L7Broadcast
from ztunnel.agent.gateways.pods import GatewayPods
from ztunnel.agent.gateways.queries import GatewayQueries
from ztunnel.agent.gateways.rejections import RejectedConfig
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.cgroup_discovery import CgroupDiscovery
from ztunnel.agent.pods.cri_discovery import CriDiscovery, runtime_dialer
from ztunnel.agent.pods.enroller import Enroller
from ztunnel.agent.pods.reconcile_loop import ReconcileLoop, Wakeup
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.pods.selection import PodSelection
from ztunnel.agent.traffic.gateway_ports import GatewayPorts
from ztunnel.agent.traffic.same_node import SameNodeBypass
from ztunnel.agent.traffic.same_node_events import SameNodeEvents
from ztunnel.agent.traffic.same_node_metrics import SameNodeMetrics
from ztunnel.agent.traffic.udp_authorizer import UdpAuthorizer
from ztunnel.agent.traffic.udp_redirect import UdpRedirector
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.agent.traffic.waypoint_bypass import WaypointBypass
from ztunnel.agent.workers.counter_collector import CounterCollector
from ztunnel.agent.workers.mesh_broadcast import MeshBroadcast
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.datapath.requirements import cgroup2_root
from ztunnel.ipc.gateway_messages import GatewaySettings
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.view.publisher import ViewPublisher
from ztunnel.mesh.model import DEFAULT_CLUSTER, DEFAULT_CLUSTER_DOMAIN
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.telemetry.node_counters import NodeCounters, TrafficTotals
from ztunnel.telemetry.same_node_rtt import RttTable


@dataclass(frozen=True)
class Core:
    """The state that components share, each part with a single writer."""

    options: Options
    kernel: KernelDataPath
    view: ClusterView
    publisher: ViewPublisher
    totals: TrafficTotals
    rtt: RttTable
    logs: LogSettings
    policies: PolicyEngine = field(default_factory=PolicyEngine)
    pods: PodTable = field(default_factory=PodTable)
    sessions: SessionTable = field(default_factory=SessionTable)
    wakeup: Wakeup = field(default_factory=Wakeup)


def build_core(options: Options, kernel: KernelDataPath) -> Core:
    view = ClusterView(
        options.trust_domain,
        DEFAULT_CLUSTER,
        root_namespace=options.root_namespace,
        discovery=options.discovery,
        node=options.node,
        annotated_only=options.access is not None,
    )
    totals, rtt = TrafficTotals(options.max_series), RttTable(options.max_series)
    logs = LogSettings(options.access_log_rate)
    return Core(options, kernel, view, ViewPublisher(view), totals, rtt, logs)


@dataclass(frozen=True)
class Traffic:
    """Connections and datagrams that are authorized outside the proxy."""

    same_node: SameNodeBypass
    same_node_events: SameNodeEvents
    waypoint_bypass: WaypointBypass
    udp_authorizer: UdpAuthorizer
    udp_redirect: UdpRedirector
    gateway_ports: GatewayPorts


def build_traffic(core: Core) -> Traffic:
    options, kernel = core.options, core.kernel
    routes = UdpRouteTable(
        options.node, core.policies, encrypted=options.same_node is SameNode.ENCRYPT
    )
    authorizer = UdpAuthorizer(
        kernel.udp_admission,
        core.policies,
        core.pods,
        routes.workload_at,
        logs=core.logs,
        mode=options.same_node,
        on_denied=core.totals.add,
    )
    same_node = SameNodeBypass(
        kernel, options.same_node, core.pods, core.policies, core.sessions, logs=core.logs
    )
    events = SameNodeEvents(
        kernel,
        same_node,
        core.pods,
        logs=core.logs,
        metrics=SameNodeMetrics(core.totals, core.rtt),
        on_strict_drop=authorizer.log_strict_drop,
    )
    redirect = UdpRedirector(kernel.udp, routes, core.pods, core.sessions, time.monotonic)
    waypoint_bypass = WaypointBypass(same_node, core.pods)
    gateway_ports = GatewayPorts(kernel.gateway_ports)
    return Traffic(same_node, events, waypoint_bypass, authorizer, redirect, gateway_ports)


@dataclass(frozen=True)
class Pods:
    """Discovery and enrollment of this node's pods."""

    discovery: CriDiscovery
    enroller: Enroller
    selection: PodSelection
    loop: ReconcileLoop


def build_pods(core: Core, traffic: Traffic) -> Pods:
    discovery = CriDiscovery(
        runtime_dialer(core.options.cri_socket),
        CgroupDiscovery(cgroup_of(core.options)),
        core.wakeup.set_from_thread,
    )
    enroller = Enroller(
        core.kernel,
        discovery,
        core.pods,
        core.sessions,
        on_captured=(
            traffic.same_node.pod_captured,
            traffic.udp_authorizer.pod_captured,
            traffic.waypoint_bypass.pod_captured,
        ),
    )
    selection = PodSelection(enroller, core.publisher.publish)
    return Pods(discovery, enroller, selection, ReconcileLoop(enroller, core.wakeup))


@dataclass(frozen=True)
class Cluster:
    """Configuration source and certificates."""

    source: ConfigSource
    issuer: CertificateIssuer
    certificates: NodeCertificates


def build_cluster(core: Core) -> Cluster:
    """Raises CaError, AccessError."""
    issuer = certificate_issuer_of(core.options)
    source = config_source_of(core.options, core.view, core.publisher.publish)
    certificates = NodeCertificates(
        issuer.signer,
        core.pods,
        core.sessions,
        blocked_reason=lambda identity: service_accounts.blocked_reason_of_identity(
            source, identity
        ),
    )
    return Cluster(source, issuer, certificates)


@dataclass(frozen=True)
class Link:
    """What workers send and receive beside pods and traffic."""

    broadcast: MeshBroadcast
    counters: CounterCollector
    node_counters: NodeCounters


def build_link(core: Core) -> Link:
    counters = NodeCounters(core.totals)
    broadcast = MeshBroadcast(
        core.view,
        core.sessions,
        registry_only=core.options.registry_only,
        same_node_direct=core.options.same_node is SameNode.DIRECT,
    )
    return Link(broadcast, CounterCollector(counters), counters)


@dataclass(frozen=True)
class Gateways:
    """The gateway process and the gateway pods of this node."""

    sessions: SessionTable
    mesh: MeshBroadcast
    l7: L7Broadcast
    pods: GatewayPods
    rejected: RejectedConfig
    queries: GatewayQueries


def build_gateways(core: Core) -> Gateways:
    sessions = SessionTable()
    pods = GatewayPods(core.kernel, core.pods, sessions)
    settings = GatewaySettings(
        trust_domain=core.options.trust_domain,
        root_namespace=core.options.root_namespace,
        cluster_domain=DEFAULT_CLUSTER_DOMAIN,
    )
    return Gateways(
        sessions,
        MeshBroadcast(core.view, sessions, registry_only=core.options.registry_only),
        L7Broadcast(core.view, sessions, settings),
        pods,
        RejectedConfig(pods),
        GatewayQueries(sessions),
    )


@dataclass(frozen=True)
class Api:
    """What the agent serves to operators, Prometheus and the kubelet."""

    logs: LogControl
    admin: AdminServer
    metrics: MetricsCollector
    endpoints: MetricsHealthServer


def build_api(
    core: Core,
    cluster: Cluster,
    traffic: Traffic,
    link: Link,
    data_path: DataPathView,
    *,
    gateways: Gateways,
) -> Api:
    options = core.options
    views = AgentViews(
        options=options,
        view=core.view,
        pods=core.pods,
        sessions=core.sessions,
        same_node=traffic.same_node,
        store=cluster.certificates.store,
        policies=core.policies,
        source=cluster.source,
        data_path=data_path,
        pin_errors=lambda: core.kernel.pins.errors,
    )
    logs = LogControl(core.logs, core.sessions, gateways.sessions)
    gateway_views = GatewayViews(
        gateways.pods,
        gateways.sessions,
        gateways.rejected,
        gateways.queries,
        traffic.gateway_ports.counters,
    )
    metrics = MetricsCollector(
        totals=core.totals,
        rtt=core.rtt,
        dns=link.node_counters.dns,
        log_drops=link.node_counters.log_drops,
        status=views,
        sessions=core.sessions,
        read_events=traffic.same_node_events.read,
        pin_dir=options.pin_dir,
        add_gateways=gateway_views.add_metrics,
    )
    endpoints = MetricsHealthServer(
        page=metrics.page,
        waiting_for=views.waiting_for,
        bind_address=options.metrics_bind_address,
        metrics_port=options.metrics_port,
        health_port=options.health_port,
    )
    admin = AdminServer(options.admin_socket, views, logs, gateway_views)
    return Api(logs, admin, metrics, endpoints)


def build_data_path_view(
    core: Core, traffic: Traffic, pods: Pods, link: Link, *, loaded: str, sees_node: bool
) -> DataPathView:
    return DataPathView(
        cgroup=cgroup_of(core.options),
        node_known_by="socket" if sees_node else "address",
        pin_dir=core.options.pin_dir,
        pins=core.kernel.pins,
        loaded=loaded,
        stats=core.kernel.stats,
        udp=traffic.udp_redirect.view,
        udp_authorizer=traffic.udp_authorizer.view,
        udp_drops=link.node_counters.udp_drops.by_reason,
        container_runtime=pods.discovery.view,
    )


def cgroup_of(options: Options) -> Path:
    """Where the hooks are attached."""
    return options.cgroup or cgroup2_root()


def publish_when_synced(cluster: Cluster, core: Core) -> Callable[[], None]:
    """Publishes only a view that is complete: before, the first one will include the change."""

    def publish() -> None:
        if cluster.source.synced.is_set():
            core.publisher.publish()

    return publish
