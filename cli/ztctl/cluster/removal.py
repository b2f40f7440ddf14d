# SPDX-License-Identifier: Apache-2.0
"""Removes the mesh from a cluster, without refusing connections of captured pods.

    delete the agents ──▶ a DaemonSet cleans each node's kernel while the proxies still run
        ──▶ delete the other objects

Labels of namespaces, policies and their CustomResourceDefinitions are not removed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from ztctl.cluster import manifests
from ztctl.cluster.api_client import ApiServer, Progress, rollout_progress
from ztctl.cluster.manifests import Object, title
from ztctl.errors import CommandError
from ztunnel.kube.constants import NAMESPACE, ROOTS_CONFIGMAP

AGENT, CLEANER = "ztunnel-agent", "ztunnel-cleaner"
CONTROLLER_FIELD_MANAGER = "ztunnel-controller"  # of the ConfigMaps with the roots


def remove_objects(
    api_server: ApiServer, timeout_s: float, report: Callable[[str], None], *, clean_nodes: bool
) -> Iterator[Object]:
    """Delete all objects; yields each one that existed. Raises CommandError.

    `timeout_s`: for each step on the nodes. `report` receives progress texts. `clean_nodes`: clean
    the nodes' kernels too. Otherwise connections of captured pods are refused until each node is
    cleaned by `ztctl uninstall` or rebooted.
    """
    objects = manifests.load()
    agents = next(obj for obj in objects if _is_agents(obj))
    installed = api_server.get(agents)
    if installed is not None and clean_nodes:
        cleaner = cleaner_of(installed)
        yield from _delete(api_server, agents)
        step = f"{title(agents)}: waiting for its pods to stop"
        _wait(api_server, timeout_s, report, step, lambda: _agents_left(api_server))
        api_server.apply(cleaner, dry_run=False, force=True)
        step = f"{title(cleaner)}: cleaning the nodes"
        _wait(
            api_server,
            timeout_s,
            report,
            step,
            lambda: rollout_progress(api_server.get(cleaner)),
        )
        yield from _delete(api_server, cleaner)
    for obj in reversed(objects):
        if obj["kind"] != manifests.CRD:  # deleting it would delete the users' policies
            yield from _delete(api_server, obj)
    for config_map in published_roots(api_server):
        yield from _delete(api_server, config_map)


def cleaner_of(agents: Object) -> Object:
    """A DaemonSet that cleans its nodes, with the image and privileges of the agents'. Pure."""
    template = copy.deepcopy(agents["spec"]["template"])
    labels = {**template["metadata"]["labels"], "app.kubernetes.io/name": CLEANER}
    spec = template["spec"]
    container = spec["containers"][0]
    common = {name: container[name] for name in ("image", "securityContext", "volumeMounts")}
    clean = {**common, "name": "clean", "args": ["uninstall"], "command": ["ztctl"]}
    done = {**common, "name": "done", "command": ["sleep"], "args": ["infinity"]}
    spec["initContainers"], spec["containers"] = [clean], [done]
    spec["automountServiceAccountToken"] = False
    return {
        "apiVersion": agents["apiVersion"],
        "kind": agents["kind"],
        "metadata": {"name": CLEANER, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": CLEANER}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def published_roots(api_server: ApiServer) -> list[Object]:
    """The ConfigMaps with the roots. One that another field manager has written is not ours."""
    found = api_server.list("/api/v1/configmaps", fieldSelector=f"metadata.name={ROOTS_CONFIGMAP}")
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": obj["metadata"]}
        for obj in found
        if _field_managers(obj) == {CONTROLLER_FIELD_MANAGER}
        and obj["metadata"]["namespace"] != NAMESPACE
    ]


def _field_managers(obj: Object) -> set[str]:
    return {str(entry.get("manager")) for entry in obj["metadata"].get("managedFields") or []}


def _delete(api_server: ApiServer, obj: Object) -> Iterator[Object]:
    if api_server.delete(obj):
        yield obj


def _agents_left(api_server: ApiServer) -> Progress:
    pods = api_server.list(
        f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=f"app.kubernetes.io/name={AGENT}"
    )
    return Progress(not pods, f"{len(pods)} pods left")


def _wait(
    api_server: ApiServer,
    timeout_s: float,
    report: Callable[[str], None],
    step: str,
    poll: Callable[[], Progress],
) -> None:
    if not api_server.wait(poll, timeout_s, lambda text: report(f"{step}: {text}")):
        raise CommandError(
            f"timed out after {timeout_s:.0f} s: {step}; hint: retry when all nodes are ready, or "
            "use --keep-nodes and run `ztctl uninstall` on each remaining node"
        )


def _is_agents(obj: Object) -> bool:
    return bool(obj["metadata"]["name"] == AGENT and obj["kind"] == "DaemonSet")
