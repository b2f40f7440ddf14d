# SPDX-License-Identifier: Apache-2.0
"""The lab's planning: what should run where, from objects alone."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.lab.cluster import scheduler
from ztunnel.lab.cluster.admission import admit, unbound
from ztunnel.lab.cluster.deployments import deployment_of, deployment_pods
from ztunnel.lab.cluster.pod_fields import pod_ips
from ztunnel.lab.cluster.system_objects import system_objects
from ztunnel.lab.network.addresses import make_nodes
from ztunnel.lab.objects import Key, Object, key_of

NOW = "2026-01-01T00:00:00Z"
NODES = make_nodes(2)
UIDS = itertools.count(1)


def store(*objects: Object) -> dict[Key, Object]:
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


def make(objects: dict[Key, Object]) -> scheduler.PodPlan:
    return scheduler.plan_pods(objects, NODES, uid=lambda _: f"u{next(UIDS)}", now=NOW)


def after(objects: dict[Key, Object], planned: scheduler.PodPlan) -> dict[Key, Object]:
    rest = {key: obj for key, obj in objects.items() if key.kind != "Pod"}
    return rest | {key_of(obj): obj for obj in planned.pods}


def test_demo_puts_client_on_node1_and_app_on_node2() -> None:
    client = pod("client", nodeSelector={"kubernetes.io/hostname": "node1"})
    planned = make(store(client, deployment("my-app", 1)))
    placed = {p["metadata"]["name"].split("-")[0]: p["spec"]["nodeName"] for p in planned.pods}
    assert placed == {"client": "node1", "my": "node2"}


def test_every_pod_has_an_address_of_each_family_on_its_own_node() -> None:
    planned = make(store(deployment("web", 5)))
    for made in planned.pods:
        index = made["spec"]["nodeName"].removeprefix("node")
        ip4, ip6 = pod_ips(made)
        assert ip4.startswith(f"10.244.{index}.")
        assert ip6.startswith(f"fd00:10:244:{index}::")


def test_replicas_of_a_deployment_spread_over_nodes() -> None:
    planned = make(store(deployment("web", 4)))
    assert sorted(p["spec"]["nodeName"] for p in planned.pods) == ["node1"] * 2 + ["node2"] * 2


def test_planning_again_changes_nothing() -> None:
    objects = store(pod("client"), deployment("web", 3))
    first = make(objects)
    second = make(after(objects, first))
    assert sorted(map(key_of, second.pods)) == sorted(map(key_of, first.pods))
    assert all(p in first.pods for p in second.pods)


def test_scaling_down_drops_pods_and_keeps_the_others_as_they_are() -> None:
    objects = store(deployment("web", 3))
    first = make(objects)
    scaled = make(after(objects, first) | store(deployment("web", 1)))
    assert len(scaled.pods) == 1
    assert scaled.pods[0] in first.pods


def test_a_changed_template_replaces_the_pods() -> None:
    objects = store(deployment("web", 2))
    first = make(objects)
    second = make(after(objects, first) | store(deployment("web", 2, image="nginx:2")))
    assert not {str(key_of(p)) for p in first.pods} & {str(key_of(p)) for p in second.pods}


def test_a_pod_whose_sandbox_is_gone_is_made_anew_with_another_uid() -> None:
    objects = store(pod("client"))
    first = make(objects)
    uid = first.pods[0]["metadata"]["uid"]
    gone = unbound(first.pods[0])
    second = make(after(objects, first) | {key_of(gone): gone})
    assert second.pods[0]["metadata"]["uid"] != uid


def test_a_node_named_by_the_pod_is_honoured_and_an_unknown_one_is_a_problem() -> None:
    planned = make(store(pod("here", nodeName="node2"), pod("nowhere", nodeName="node9")))
    placed = {p["metadata"]["name"]: p["spec"].get("nodeName") for p in planned.pods}
    assert placed["here"] == "node2"
    assert not any(pod_ips(p) for p in planned.pods if p["metadata"]["name"] == "nowhere")
    assert "this lab has node1, node2" in planned.problems[0]


def test_host_network_pod_has_its_nodes_addresses() -> None:
    planned = make(store(pod("agent", hostNetwork=True, nodeName="node2")))
    assert pod_ips(planned.pods[0]) == ["172.30.0.2", "fd00:30::2"]


def test_missing_service_account_is_a_problem_with_hint() -> None:
    planned = make(store(pod("client", serviceAccountName="robot")))
    assert not planned.pods
    assert "'robot' does not exist; hint" in planned.problems[0]


def test_every_namespace_gets_a_default_service_account() -> None:
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    assert Key("ServiceAccount", "shop", "default") in store(space)


def test_deployment_is_found_from_its_pod() -> None:
    made = next(deployment_pods(deployment("my-app", 1)))
    assert deployment_of(made) == "my-app"


def test_apply_keeps_labels_set_by_hand_and_what_the_lab_gave() -> None:
    old = admit(pod("client"), None, lambda: "u", NOW)
    bound = make(store(old)).pods[0]
    bound["metadata"]["labels"] = {"by": "hand"}
    again = admit(pod("client"), bound, lambda: "other", NOW)
    assert again["metadata"]["labels"] == {"by": "hand"}
    assert again["metadata"]["uid"] == bound["metadata"]["uid"]
    assert again["status"] == bound["status"]


def test_apply_of_a_changed_pod_unbinds_it() -> None:
    bound = make(store(admit(pod("client"), None, lambda: "u", NOW))).pods[0]
    changed = admit(pod("client", hostNetwork=True), bound, lambda: "other", NOW)
    assert "uid" not in changed["metadata"]
    assert "status" not in changed


def test_apply_of_a_service_keeps_its_address() -> None:
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
def test_no_two_pods_ever_share_an_address(sizes: list[int]) -> None:
    objects = store(deployment("web", 0))
    for size in sizes:
        objects = after(
            objects,
            make(
                objects
                | {
                    k: v
                    for k, v in store(deployment("web", size)).items()
                    if k.kind == "Deployment"
                }
            ),
        )
        ips = [ip for key, obj in objects.items() if key.kind == "Pod" for ip in pod_ips(obj)]
        assert len(ips) == len(set(ips)) == 2 * size
