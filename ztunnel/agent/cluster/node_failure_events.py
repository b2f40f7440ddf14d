# SPDX-License-Identifier: Apache-2.0
"""Emits Events on pods when the node cannot run the data path.

If the kernel is too old or lacks a feature, or if no cgroup v2 is mounted, the agent exits. Before,
it lists the node's pods once and emits an Event on each pod that should be enrolled. The kubelet
restarts the agent with backoff; a repeated message counts as the same Event, so they do not
accumulate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import structlog

from ztunnel.agent.cluster.pod_status import CAPTURE_FAILED, MAX_WRITES
from ztunnel.agent.config import Options
from ztunnel.kube.client.reflector import Resource, list_objects
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.sources.api_server import watched_resources
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.mesh.model import DEFAULT_CLUSTER, Workload

log = structlog.get_logger()


def emit(options: Options, reason: str) -> int:
    """Emit the Events; returns their number. Blocks. Never raises: the original error matters."""
    if options.access is None:
        return 0
    try:
        with closing(PodWriter(options.access.client(), options.node)) as writer:
            pods = list(_pods_to_capture(writer.client, options))
            for pod in pods[:MAX_WRITES]:
                writer.emit_event(pod, CAPTURE_FAILED, _message(options.node, reason))
    except ApiError as error:
        log.warning("failed to emit events", error=str(error))
        return 0
    except Exception as error:  # the API's client raises its own and urllib3's
        log.warning("failed to emit events", error=" ".join(str(error).split())[:300])
        return 0
    log.info("node failure events emitted", pods=len(pods))
    return len(pods)


def _message(node: str, reason: str) -> str:
    return (
        f"not captured: node {node} can't run the data path of the mesh: {reason}; "
        f"hint: run `ztctl check` on the node and fix what fails, or move the pod to another node"
    )


def _pods_to_capture(client: Any, options: Options) -> Iterator[Workload]:
    """The enrolled pods of the node."""
    view = ClusterView(
        options.trust_domain, DEFAULT_CLUSTER, discovery=options.discovery, annotated_only=True
    )
    namespaces = next(each for each in watched_resources(options.node) if each.kind == "Namespace")
    own = Resource("Pod", "/api/v1/pods", f"spec.nodeName={options.node}")
    for resource in (namespaces, own):
        for obj in list_objects(client, resource):
            view.upsert(obj)
    return (pod for pod in view.pods_on(options.node) if pod.enrolled)
