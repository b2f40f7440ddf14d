# SPDX-License-Identifier: Apache-2.0
"""The lab's scheduler, Deployment controller and admission."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.lab.cluster.admission import admit, unbound
from ztunnel.lab.cluster.deployments import deployment_of, deployment_pods, workload_of
from ztunnel.lab.cluster.pod_fields import pod_ips
from ztunnel.lab.cluster.scheduler import PodPlan, plan_pods, surplus_pods
from ztunnel.lab.cluster.system_objects import system_objects
from ztunnel.lab.network.addresses import make_nodes
from ztunnel.lab.objects import Key, Object, key_of

NOW = "2026-01-01T00:00:00Z"
NODES = make_nodes(2)
UIDS = itertools.count(1)


def with_system_objects(*objects: Object) -> dict[Key, Object]:
    seeded = {key_of(obj): obj for obj in objects}
    return seeded | {key_of(obj): obj for obj in system_objects(seeded, NODES)}


def pod(name: str, **spec: Any) -> Object:
    containers = [{"name": "c", "image": "debian"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": containers, **spec},
    }


def deployment(name: str, replicas: int, image: str = "nginx") -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {
            "replicas": replicas,
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": name, "image": image}]},
            },
        },
    }


def daemon_set(name: str, image: str = "nginx", max_surge: int = 0, **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {
            "updateStrategy": {"rollingUpdate": {"maxSurge": max_surge}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": name, "image": image}], **spec},
            },
        },
    }


def plan(objects: dict[Key, Object]) -> PodPlan:
    return plan_pods(objects, NODES, uid=lambda _: f"u{next(UIDS)}", now=NOW)


def with_pods(objects: dict[Key, Object], plan: PodPlan) -> dict[Key, Object]:
    rest = {key: obj for key, obj in objects.items() if key.kind != "Pod"}
    return rest | {key_of(obj): obj for obj in plan.pods}


def test_demo_schedules_client_on_node1_and_app_on_node2() -> None:
    client = pod("client", nodeSelector={"kubernetes.io/hostname": "node1"})
    planned = plan(with_system_objects(client, deployment("my-app", 1)))
    placed = {p["metadata"]["name"].split("-")[0]: p["spec"]["nodeName"] for p in planned.pods}
    assert placed == {"client": "node1", "my": "node2"}


def test_pods_have_an_address_of_each_family_in_the_range_of_their_node() -> None:
    planned = plan(with_system_objects(deployment("web", 5)))
    for created in planned.pods:
        index = created["spec"]["nodeName"].removeprefix("node")
        ip4, ip6 = pod_ips(created)
        assert ip4.startswith(f"10.244.{index}.")
        assert ip6.startswith(f"fd00:10:244:{index}::")


def test_replicas_are_balanced_over_nodes() -> None:
    planned = plan(with_system_objects(deployment("web", 4)))
    assert sorted(p["spec"]["nodeName"] for p in planned.pods) == ["node1"] * 2 + ["node2"] * 2


def test_plan_is_idempotent() -> None:
    objects = with_system_objects(pod("client"), deployment("web", 3))
    first = plan(objects)
    second = plan(with_pods(objects, first))
    assert sorted(map(key_of, second.pods)) == sorted(map(key_of, first.pods))
    assert all(p in first.pods for p in second.pods)


def test_scaling_down_does_not_change_the_remaining_pods() -> None:
    objects = with_system_objects(deployment("web", 3))
    first = plan(objects)
    scaled = plan(with_pods(objects, first) | with_system_objects(deployment("web", 1)))
    assert len(scaled.pods) == 1
    assert scaled.pods[0] in first.pods


def test_changed_template_replaces_the_pods() -> None:
    objects = with_system_objects(deployment("web", 2))
    first = plan(objects)
    second = plan(
        with_pods(objects, first) | with_system_objects(deployment("web", 2, image="nginx:2"))
    )
    assert not {str(key_of(p)) for p in first.pods} & {str(key_of(p)) for p in second.pods}


def test_rolling_update_keeps_old_pods_and_their_addresses() -> None:
    objects = with_system_objects(deployment("web", 2))
    first = plan(objects)
    updated = with_system_objects(deployment("web", 2, image="nginx:2"))
    stored = with_pods(objects, first) | updated
    second = plan(stored)
    assert surplus_pods(stored, second) == ([*sorted(first.pods, key=key_of)], [])
    old, new = ({ip for p in each.pods for ip in pod_ips(p)} for each in (first, second))
    assert not old & new


def test_recreated_and_orphaned_pods_stop_at_once() -> None:
    objects = with_system_objects(deployment("web", 1), deployment("gone", 1))
    first = plan(objects)
    recreated = deployment("web", 1, image="nginx:2")
    recreated["spec"]["strategy"] = {"type": "Recreate"}
    stored = with_pods(with_system_objects(recreated), first)
    replaced, obsolete = surplus_pods(stored, plan(stored))
    assert replaced == []
    assert {deployment_of(p) for p in obsolete} == {"web", "gone"}


def test_unbound_pod_gets_another_uid() -> None:
    objects = with_system_objects(pod("client"))
    first = plan(objects)
    uid = first.pods[0]["metadata"]["uid"]
    gone = unbound(first.pods[0])
    second = plan(with_pods(objects, first) | {key_of(gone): gone})
    assert second.pods[0]["metadata"]["uid"] != uid


def test_node_name_is_respected_and_an_unknown_one_is_a_problem() -> None:
    planned = plan(
        with_system_objects(pod("here", nodeName="node2"), pod("nowhere", nodeName="node9"))
    )
    placed = {p["metadata"]["name"]: p["spec"].get("nodeName") for p in planned.pods}
    assert placed["here"] == "node2"
    assert not any(pod_ips(p) for p in planned.pods if p["metadata"]["name"] == "nowhere")
    assert "hint: this lab has node1, node2" in planned.problems[0]


def test_host_network_pod_has_the_addresses_of_its_node() -> None:
    planned = plan(with_system_objects(pod("agent", hostNetwork=True, nodeName="node2")))
    assert pod_ips(planned.pods[0]) == ["172.30.0.2", "fd00:30::2"]


def test_missing_service_account_is_a_problem_with_hint() -> None:
    planned = plan(with_system_objects(pod("client", serviceAccountName="robot")))
    assert not planned.pods
    assert "'robot' does not exist; hint" in planned.problems[0]


def test_every_namespace_gets_a_default_service_account() -> None:
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    assert Key("ServiceAccount", "shop", "default") in with_system_objects(space)


def test_deployment_of_a_pod_is_found_by_its_replica_set() -> None:
    created = next(deployment_pods(deployment("my-app", 1)))
    assert deployment_of(created) == "my-app"


def test_apply_preserves_manual_labels_uid_and_status() -> None:
    old = admit(pod("client"), None, lambda: "u", NOW)
    bound = plan(with_system_objects(old)).pods[0]
    bound["metadata"]["labels"] = {"set": "manually"}
    again = admit(pod("client"), bound, lambda: "other", NOW)
    assert again["metadata"]["labels"] == {"set": "manually"}
    assert again["metadata"]["uid"] == bound["metadata"]["uid"]
    assert again["status"] == bound["status"]


def test_apply_of_a_changed_spec_unbinds_the_pod() -> None:
    bound = plan(with_system_objects(admit(pod("client"), None, lambda: "u", NOW))).pods[0]
    changed = admit(pod("client", hostNetwork=True), bound, lambda: "other", NOW)
    assert "uid" not in changed["metadata"]
    assert "status" not in changed


def test_apply_preserves_the_addresses_of_a_service() -> None:
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "default"},
        "spec": {"ports": [{"port": 80}]},
    }
    old = admit(service, None, lambda: "u", NOW)
    old["spec"] |= {"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd00:10:96::101"]}
    again = admit(service, old, lambda: "other", NOW)
    assert again["spec"]["clusterIPs"] == ["10.96.1.1", "fd00:10:96::101"]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_addresses_are_unique_when_a_deployment_is_scaled(sizes: list[int]) -> None:
    objects = with_system_objects(deployment("web", 0))
    for size in sizes:
        objects = with_pods(
            objects,
            plan(
                objects
                | {
                    k: v
                    for k, v in with_system_objects(deployment("web", size)).items()
                    if k.kind == "Deployment"
                }
            ),
        )
        ips = [ip for key, obj in objects.items() if key.kind == "Pod" for ip in pod_ips(obj)]
        assert len(ips) == len(set(ips)) == 2 * size


def test_daemon_set_has_a_pod_on_each_selected_node() -> None:
    selected = daemon_set("one", nodeSelector={"kubernetes.io/hostname": "node2"})
    pods = plan(with_system_objects(daemon_set("all"), selected)).pods
    nodes = {(p["metadata"]["labels"]["app"], p["spec"]["nodeName"]) for p in pods}
    assert nodes == {("all", "node1"), ("all", "node2"), ("one", "node2")}
    assert {workload_of(p) for p in pods} == {
        Key("DaemonSet", "default", "all"),
        Key("DaemonSet", "default", "one"),
    }


def test_changed_daemon_set_replaces_pods_before_or_after_the_new_ones() -> None:
    for max_surge in (0, 1):
        before = with_system_objects(daemon_set("agent", max_surge=max_surge))
        before = with_pods(before, plan(before))
        changed = daemon_set("agent", "other", max_surge)
        after = {**before, key_of(changed): changed}
        replaced, obsolete = surplus_pods(after, plan(after))
        assert (len(replaced), len(obsolete)) == ((0, 2), (2, 0))[max_surge]
