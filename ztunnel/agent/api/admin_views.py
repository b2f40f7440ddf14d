# SPDX-License-Identifier: Apache-2.0
"""The responses of the admin API, from the state of the agent's components. They have no keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ztunnel import __version__
from ztunnel.agent.api.admin_server import Json
from ztunnel.agent.api.policy_simulator import PolicySimulator
from ztunnel.agent.cluster.config_source import ConfigSource
from ztunnel.agent.config import Options
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.traffic.same_node import SameNodeBypass
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.identity.certificate_store import CertificateStore
from ztunnel.ipc.introspection import View
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.model import DEFAULT_CLUSTER_DOMAIN
from ztunnel.mesh.policy.engine import PolicyEngine

WORKER_TIMEOUT_S = 2.0  # for a worker's reply


NOT_SERVED = "NotServed"  # beside the values of `pod.RetryReason`


class AgentViews:
    """Implements `admin_server.Views`."""

    def __init__(
        self,
        *,
        options: Options,
        view: ClusterView,
        pods: CapturedPods,
        sessions: SessionRegistry,
        same_node: SameNodeBypass,
        store: CertificateStore,
        policies: PolicyEngine,
        source: ConfigSource,
        data_path: Callable[[], Json],
        pin_errors: Callable[[], Sequence[str]],
    ) -> None:
        self._options = options
        self._view = view
        self._captured_pods = pods
        self._sessions = sessions
        self._same_node = same_node
        self._store = store
        self._simulator = PolicySimulator(view, policies)
        self._source = source
        self._data_path = data_path
        self._pin_errors = pin_errors

    def waiting_for(self) -> list[str]:
        """The conditions that readiness waits for; empty if the agent is ready.

        Readiness reflects the agent itself (decision 0020). `pods`, metrics and Events report
        errors of single pods: one failing app must not make its node unready.
        """
        missing = []
        source = self._source_status()
        if not source["synced"]:
            errors = "; ".join(f"{name}: {text}" for name, text in source["errors"].items())
            missing.append("first complete view of the mesh" + (f" ({errors})" if errors else ""))
        if not any(session.is_synced for session in self._sessions.sessions):
            missing.append("a proxy worker")
        missing += [f"BPF pin {error}" for error in self._pin_errors()]
        return missing

    def status(self) -> Json:
        """The status of the agent and the data path."""
        options, waiting_for = self._options, self.waiting_for()
        pods = [self._pod(pod) for pod in self._captured_pods]
        return {
            "node": options.node,
            "version": __version__,
            "trust_domain": options.trust_domain,
            "ready": not waiting_for,
            "waiting_for": waiting_for,
            "source": self._source_status(),
            "workers": [
                {
                    "worker": session.worker,
                    "pid": session.peer.pid,
                    "uid": session.peer.uid,
                    "version": session.version,
                    "synced": session.is_synced,
                    "queued_bytes": session.queued_bytes,
                }
                for session in self._sessions.sessions
            ],
            "pods": {
                "captured": sum(pod["state"] == PodState.CAPTURED for pod in pods),
                "waiting": sum(bool(pod["problem"]) for pod in pods),
                "refused": len(self._refused()),
            },
            "same_node": self._same_node.status(),
            "data_path": self._data_path(),
        }

    def workloads(self) -> Json:
        rows = sorted(self._view.snapshot().workloads, key=lambda workload: workload.uid)
        return {"workloads": [{**_data(row), "identity": row.identity} for row in rows]}

    def services(self) -> Json:
        rows = sorted(self._view.snapshot().services, key=lambda service: service.key)
        return {"services": [{**_data(row), "key": row.key} for row in rows]}

    def pods(self) -> Json:
        rows = sorted(map(self._pod, self._captured_pods), key=lambda row: str(row["workload"]))
        return {"pods": rows, "refused": self._refused()}

    def certificates(self) -> Json:
        return {"certificates": self._store.statuses()}

    def policies(self) -> Json:
        return self._simulator.policies()

    def l7(self) -> Json:
        """The objects that configure L7, which the agent does not parse."""
        options = self._options
        return {
            "settings": {
                "trust_domain": options.trust_domain,
                "root_namespace": options.root_namespace,
                "cluster_domain": DEFAULT_CLUSTER_DOMAIN,
            },
            "objects": [msgspec.Raw(each.body) for each in self._view.snapshot().l7],
        }

    def policy(self, query: Mapping[str, str]) -> Json:
        return self._simulator.policy(query)

    def policy_test(self, query: Mapping[str, str]) -> Json:
        return self._simulator.test(query)

    async def query_workers(self, what: str) -> Json:
        """The rows of all workers, and the pids of those that did not reply.

        The connections include those that bypass the proxy.
        """
        replies = await self._sessions.query(View(what), WORKER_TIMEOUT_S)
        rows = [{**row, "worker": reply.worker} for reply in replies for row in reply.body or []]
        return {
            what: rows + (self._same_node.connections() if what == "connections" else []),
            "unanswered": [reply.pid for reply in replies if reply.body is None],
        }

    def _source_status(self) -> Json:
        return {
            **self._source.view(),
            "synced": self._source.synced.is_set(),
            "revision": self._view.revision,
            "errors": {**self._source.errors(), **self._view.errors()},
        }

    def _refused(self) -> list[Json]:
        return [
            {"pod": workload.uid, "reason": workload.capture_refused}
            for workload in self._view.snapshot().workloads
            if workload.node == self._options.node and workload.capture_refused
        ]

    def _pod(self, pod: Pod) -> Json:
        reason, problem = self._problem(pod)
        return {
            "workload": _name(pod),
            "pod_uid": pod.uid,
            "state": pod.state.value,
            "problem": problem,
            "reason": reason,
            "identity": pod.workload.identity,
            "addresses": list(pod.workload.addresses),
            "netns_cookie": pod.cookie,
            "sandbox_pid": pod.netns.pid if pod.netns else 0,
            "listeners": sorted(kind.value for kind in pod.listeners),
            "served_by": [
                session.peer.pid for session in self._sessions.sessions if pod.uid in session.ready
            ],
        }

    def _problem(self, pod: Pod) -> tuple[str, str]:
        """Reason and message; both empty if the pod is captured and served."""
        if pod.error:
            return pod.error.reason.value, pod.error.message
        if any(pod.uid in session.ready for session in self._sessions.sessions):
            return "", ""
        return NOT_SERVED, "no proxy worker serves the pod: its connections are refused"


def _name(pod: Pod) -> str:
    return f"{pod.workload.namespace}/{pod.workload.name}"


def _data(row: msgspec.Struct) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(row)
    return data
