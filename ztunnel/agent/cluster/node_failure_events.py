# SPDX-License-Identifier: Apache-2.0
"""Tell people's pods that their node can't capture them: for an agent that ends before it begins.

Its kernel is too old, or lacks something, or no cgroup v2 is mounted: no data path, so nothing else
of the agent runs. One look at the API, one Event on each pod of the node that asked for enrolment.
The agent then ends and is started again by the kubelet, ever more slowly; the same words on the
same pod are the same Event, so nothing piles up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import structlog

from ztunnel.agent.cluster.pod_status import FAILED, MOST
from ztunnel.agent.config import Options
from ztunnel.kube.client.reflector import Resource, list_objects
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.sources.api_server import watched_resources
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.mesh.model import DEFAULT_CLUSTER, Workload

log = structlog.get_logger()


def tell(options: Options, reason: str) -> int:
    """How many pods were told. Blocking; never raises: the reason why must not get lost in it."""
    if options.access is None:
        return 0
    try:
        with closing(PodWriter(options.access.client(), options.node)) as marker:
            pods = list(_asked(marker.client, options))
            for pod in pods[:MOST]:
                marker.emit_event(pod, FAILED, _message(options.node, reason))
    except ApiError as error:
        log.warning("pods not told", error=str(error))
        return 0
    except Exception as error:  # the API's client raises its own and urllib3's
        log.warning("pods not told", error=" ".join(str(error).split())[:300])
        return 0
    log.info("pods told that they are not captured", pods=len(pods))
    return len(pods)


def _message(node: str, reason: str) -> str:
    return (
        f"not captured: node {node} can't run the mesh's data path: {reason} "
        f"— mend the node (`ztctl check` there tells what it lacks), or move the pod to another"
    )


def _asked(client: Any, options: Options) -> Iterator[Workload]:
    """The node's pods that are to be captured."""
    mirror = ClusterView(
        options.trust_domain, DEFAULT_CLUSTER, discovery=options.discovery, annotated_only=True
    )
    namespaces = next(each for each in watched_resources(options.node) if each.kind == "Namespace")
    own = Resource("Pod", "/api/v1/pods", f"spec.nodeName={options.node}")
    for resource in (namespaces, own):
        for obj in list_objects(client, resource):
            mirror.upsert(obj)
    return (pod for pod in mirror.pods_on(options.node) if pod.enrolled)
