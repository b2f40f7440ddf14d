# SPDX-License-Identifier: Apache-2.0
"""The gateway pods of this node, for the admin API: implements `admin_server.Gateways`."""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.agent.api.admin_server import Json
from ztunnel.agent.gateways.pods import GatewayPod, GatewayPods
from ztunnel.agent.gateways.queries import GatewayQueries, GatewayQueryError
from ztunnel.agent.gateways.rejections import RejectedConfig
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.datapath.gateway_port_map import OpenPort
from ztunnel.ipc.gateway_messages import GatewayView
from ztunnel.telemetry.exposition import Snapshot

MAX_LOG_LEVEL_CHARS = 64
NO_PROCESS = "no gateway process is connected"


class GatewayViews:
    """Envoy's own views come from the gateway process as JSON text, which is passed on unchanged.

    Envoy redacts private keys in them.
    """

    def __init__(
        self,
        pods: GatewayPods,
        sessions: SessionRegistry,
        rejected: RejectedConfig,
        queries: GatewayQueries,
        admitted: Callable[[], dict[OpenPort, int]] = dict,
    ) -> None:
        """`admitted`: the open ports of gateway pods, and what arrived there."""
        self._admitted = admitted
        self._pods = pods
        self._sessions = sessions
        self._rejected = rejected
        self._queries = queries

    def gateways(self) -> Json:
        """The gateway pods, and the processes that serve them."""
        ports = self._admitted()
        rows = [self._row(each, ports) for each in sorted(self._pods.pods(), key=_name)]
        processes = [
            {
                "pid": session.peer.pid,
                "uid": session.peer.uid,
                "version": session.version,
                "synced": session.is_synced,
            }
            for session in self._sessions.sessions
        ]
        return {"gateways": rows, "processes": processes}

    def add_metrics(self, snapshot: Snapshot) -> None:
        """Set the metrics about gateways."""
        pods = self._pods.pods()
        served = sum(bool(pod.listeners) for pod in pods)
        snapshot.set("ztunnel_gateway_processes", len(self._sessions.sessions))
        snapshot.set("ztunnel_gateway_messages_rejected", self._sessions.rejected_messages)
        snapshot.set("ztunnel_gateway_pods", served, "served")
        snapshot.set("ztunnel_gateway_pods", len(pods) - served, "waiting")
        for pod in pods:
            count = len(self._rejected.of_pod(pod.workload.pod_uid))
            snapshot.set("ztunnel_gateway_rejected_resources", count, _name(pod))

    async def gateway(self, pod: str, view: str, log_level: str = "") -> bytes:
        """A view of a pod (`namespace/name`) as JSON text.

        Raises ValueError for an invalid request, LookupError for an unknown pod or no reply.
        """
        try:
            wanted = GatewayView(view)
        except ValueError:
            names = ", ".join(each.value for each in GatewayView)
            raise ValueError(f"{view[:64]!r} is not a view; the views are {names}") from None
        if len(log_level) > MAX_LOG_LEVEL_CHARS:
            raise ValueError("the log level is too long")
        found = next((each for each in self._pods.pods() if _name(each) == pod), None)
        if found is None:
            raise LookupError(f"{pod[:320]!r} is not a gateway pod of this node")
        try:
            return await self._queries.query(found.workload.pod_uid, wanted, log_level)
        except GatewayQueryError as error:
            raise LookupError(str(error)) from error

    def _row(self, pod: GatewayPod, ports: dict[OpenPort, int]) -> Json:
        uid = pod.workload.pod_uid
        problem = pod.error or ("" if self._sessions.sessions else NO_PROCESS)
        return {
            "workload": _name(pod),
            "pod_uid": uid,
            "gateway": pod.workload.gateway,
            "listeners": sorted(kind.value for kind in pod.listeners),
            "public_ports": [
                {"address": address, "port": port, "protocol": protocol, "admitted": admitted}
                for (address, port, protocol), admitted in sorted(ports.items())
                if address in pod.workload.addresses
            ],
            "problem": problem,
            "rejected": [
                {
                    "type": each.type_url.rpartition(".")[2],
                    "name": each.name,
                    "message": each.message,
                }
                for each in self._rejected.of_pod(uid)
            ],
        }


def _name(pod: GatewayPod) -> str:
    return f"{pod.workload.namespace}/{pod.workload.name}"
