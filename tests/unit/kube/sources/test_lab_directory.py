# SPDX-License-Identifier: Apache-2.0
"""The directory source reads what the lab writes."""

from __future__ import annotations

import itertools
from pathlib import Path

from ztunnel.kube.sources.directory import scan_directory
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.lab.cluster import scheduler, services
from ztunnel.lab.cluster.system_objects import system_objects
from ztunnel.lab.network.addresses import make_nodes
from ztunnel.lab.objects import Key, Object, ObjectStore, key_of
from ztunnel.mesh.model import TunnelProtocol

NODES = make_nodes(2)
METADATA = {"name": "my-app", "namespace": "default"}
MANIFESTS: list[Object] = [
    {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "default", "labels": {"istio.io/dataplane-mode": "ambient"}},
    },
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": METADATA,
        "spec": {
            "replicas": 2,
            "template": {
                "metadata": {"labels": {"app": "my-app"}},
                "spec": {"containers": [{"name": "my-app", "image": "nginx:latest"}]},
            },
        },
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": METADATA,
        "spec": {"selector": {"app": "my-app"}, "ports": [{"port": 80}]},
    },
]


def planned() -> dict[Key, Object]:
    """The lab's objects while everything runs."""
    found = {key_of(obj): obj for obj in MANIFESTS}
    found |= {key_of(obj): obj for obj in system_objects(found, NODES)}
    uids = (f"uid{number}" for number in itertools.count())
    pods = scheduler.plan_pods(found, NODES, uid=lambda _: next(uids), now="now").pods
    for pod in pods:
        pod["status"]["phase"] = "Running"
        pod["status"]["conditions"].append({"type": "Ready", "status": "True"})
    found |= {key_of(obj): obj for obj in pods}
    found |= {key_of(obj): obj for obj in services.plan_services(found)}
    return found | {key_of(obj): obj for obj in services.plan_slices(found)}


def test_lab_directory_is_read_completely(tmp_path: Path) -> None:
    store, view = (
        ObjectStore(tmp_path, tmp_path / "secrets"),
        ClusterView("cluster.local", "Kubernetes"),
    )
    for obj in planned().values():
        store.put(obj)
    scan = scan_directory(tmp_path, {})
    for content in scan.loaded.values():
        for obj in content.values():
            view.upsert(obj)
    assert (scan.failed, view.errors()) == ({}, {})
    workloads = {w.uid: w for w in view.snapshot().workloads}
    assert {w.node for w in workloads.values()} == {"node1", "node2"}
    for workload in workloads.values():
        assert (workload.owner_kind, workload.owner_name) == ("deployment", "my-app")
        assert workload.protocol is TunnelProtocol.HBONE
        assert len(workload.addresses) == 2
        assert workload.ready
    (service,) = view.snapshot().services
    assert len(service.vips) == 2
    assert len(service.endpoints) == 4
    assert {workloads[e.workload].namespace for e in service.endpoints} == {"default"}
    assert all(e.address in workloads[e.workload].addresses for e in service.endpoints)
    assert all(e.ports == {"": 80} for e in service.endpoints)
    assert len(view.node_addresses("node1")) == 2
