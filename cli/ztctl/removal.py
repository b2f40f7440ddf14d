# SPDX-License-Identifier: Apache-2.0
"""Takes the mesh out of a cluster, in an order in which no captured pod is refused meanwhile.

    agents away --> a DaemonSet cleans each node's kernel, the proxies still carry --> the rest

What people wrote stays: labels of namespaces, and policies with the definitions of their kinds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from ztctl import manifests
from ztctl.cluster import Cluster, Progress, progress
from ztctl.errors import CommandError
from ztctl.manifests import Object, title
from ztunnel.kube.constants import NAMESPACE, ROOTS_CONFIGMAP

AGENT, CLEANER = "ztunnel-agent", "ztunnel-cleaner"
SIGNER_MANAGER = "ztunnel-controller"  # field manager of the roots' ConfigMaps


def uninstall(
    cluster: Cluster, timeout: float, say: Callable[[str], None], *, nodes: bool
) -> Iterator[Object]:
    """Remove everything, yielding what was removed, one by one. Raises CommandError.

    `nodes`: clean the nodes' kernels as well; without it their pins stay, and captured pods are
    refused until each node is cleaned by hand or rebooted.
    """
    objects = manifests.load()
    agents = next(obj for obj in objects if obj["metadata"]["name"] == AGENT and _is_daemons(obj))
    installed = cluster.get(agents)
    if installed is not None and nodes:
        cleaner = cleaner_of(installed)
        yield from _remove(cluster, agents)
        _await(cluster, timeout, say, f"{title(agents)} leaves its nodes", lambda: _gone(cluster))
        cluster.apply(cleaner, dry_run=False, force=True)
        _await(
            cluster,
            timeout,
            say,
            f"{title(cleaner)} cleans the nodes",
            lambda: progress(cluster.get(cleaner)),
        )
        yield from _remove(cluster, cleaner)
    for obj in reversed(objects):
        if obj["kind"] == manifests.CRD:
            continue  # with it would go all that people wrote of its kind
        yield from _remove(cluster, obj)
    for roots in published_roots(cluster):
        yield from _remove(cluster, roots)


def cleaner_of(agents: Object) -> Object:
    """From the agents' DaemonSet, one of the same image and rights that cleans its node. Pure."""
    template = copy.deepcopy(agents["spec"]["template"])
    labels = {**template["metadata"]["labels"], "app.kubernetes.io/name": CLEANER}
    spec = template["spec"]
    container = spec["containers"][0]
    kept = {name: container[name] for name in ("image", "securityContext", "volumeMounts")}
    clean = {**kept, "name": "clean", "args": ["uninstall"], "command": ["ztctl"]}
    rest = {**kept, "name": "done", "command": ["sleep"], "args": ["infinity"]}
    spec["initContainers"], spec["containers"] = [clean], [rest]
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


def published_roots(cluster: Cluster) -> list[Object]:
    """The signer's ConfigMaps; one that another controller wrote last is not ours to take."""
    found = cluster.list("/api/v1/configmaps", fieldSelector=f"metadata.name={ROOTS_CONFIGMAP}")
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": each["metadata"]}
        for each in found
        if _managers(each) == {SIGNER_MANAGER} and each["metadata"]["namespace"] != NAMESPACE
    ]


def _managers(obj: Object) -> set[str]:
    return {str(each.get("manager")) for each in obj["metadata"].get("managedFields") or []}


def _remove(cluster: Cluster, obj: Object) -> Iterator[Object]:
    if cluster.delete(obj):
        yield obj


def _gone(cluster: Cluster) -> Progress:
    left = cluster.list(
        f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=f"app.kubernetes.io/name={AGENT}"
    )
    return Progress(not left, f"{len(left)} pods left")


def _await(
    cluster: Cluster,
    timeout: float,
    say: Callable[[str], None],
    what: str,
    look: Callable[[], Progress],
) -> None:
    if not cluster.wait(look, timeout, lambda text: say(f"{what}: {text}")):
        raise CommandError(
            f"not in {timeout:.0f} s: {what}; repeat the command when the nodes are back, or give "
            "--keep-nodes and clean each node that remains with: ztctl uninstall"
        )


def _is_daemons(obj: Object) -> bool:
    return bool(obj["kind"] == "DaemonSet")
