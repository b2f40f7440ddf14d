# SPDX-License-Identifier: Apache-2.0
"""Of the API's JSON all that the mirror reads is kept, and nothing of what it does not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ztunnel.kube.client.object_decoder import NAME, PartialDecoder
from ztunnel.kube.view.cluster_view import ClusterView

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "a",
        "namespace": "shop",
        "uid": "u1",
        "resourceVersion": "7",
        "labels": {"app": "a"},
        "annotations": {
            "sidecar.istio.io/status": "x" * 5000,
            "ambient.ztunnel.dev/capacity": "3",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "evil-istio.io.example/x": "y",
        },
        "ownerReferences": [{"kind": "Job", "name": "j", "uid": "u", "apiVersion": "batch/v1"}],
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {
        "nodeName": "n1",
        "serviceAccountName": "sa",
        "containers": [{"name": "c", "image": "i"}],
    },
    "status": {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}],
        "conditions": [
            {"type": "Initialized", "status": "True"},
            {"type": "Ready", "status": "True", "lastTransitionTime": None},
        ],
    },
}
SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {
        "name": "s-1",
        "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "s"},
    },
    "addressType": "IPv4",
    "endpoints": [
        {
            "addresses": ["10.0.0.1"],
            "conditions": {"ready": True, "serving": True},
            "targetRef": {"kind": "Pod", "name": "a", "namespace": "shop", "uid": "u1"},
            "hostname": "a-0",
            "zone": "z",
        }
    ],
    "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
}
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "s", "namespace": "shop"},
    "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80}]},
}


def trimmed(obj: dict[str, Any]) -> dict[str, Any]:
    line = json.dumps({"type": "ADDED", "object": obj}).encode()
    event: dict[str, Any] = json.loads(PartialDecoder(obj["kind"]).event(line))
    kept: dict[str, Any] = event["object"]
    return kept


def test_mirror_understands_the_trimmed_as_the_whole() -> None:
    whole, short = ClusterView("td", "c"), ClusterView("td", "c")
    for obj in (SERVICE, SLICE, POD):
        whole.upsert(obj)
        short.upsert(trimmed(obj))
    assert short.snapshot() == whole.snapshot()
    assert short.errors() == whole.errors() == {}
    (workload,) = short.snapshot().workloads
    assert (workload.capacity, workload.owner_name, workload.ready) == (3, "j", True)
    (service,) = short.snapshot().services
    assert [endpoint.hostname for endpoint in service.endpoints] == ["a-0"]


def test_what_is_not_read_is_gone() -> None:
    kept = trimmed(POD)
    assert set(kept["spec"]) == {"nodeName", "serviceAccountName"}
    assert set(kept["metadata"]["annotations"]) == {
        "sidecar.istio.io/status",
        "ambient.ztunnel.dev/capacity",
    }
    assert "managedFields" not in kept["metadata"]
    assert len(json.dumps(kept)) < 1000


def test_of_an_account_the_name_is_kept() -> None:
    metadata = {"name": "web", "namespace": "shop", "resourceVersion": "7"}
    more = {"uid": "u", "labels": {"a": "b"}, "annotations": {"istio.io/a": "b"}}
    account = {"kind": "ServiceAccount", "metadata": metadata | more, "secrets": [{"name": "s"}]}
    expected = {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata}
    assert trimmed(account) == expected
    body = json.dumps({"metadata": {}, "items": [account]}).encode()
    assert PartialDecoder("ServiceAccount").page(body).items == [{NAME: "shop/web"}]


def test_version_stays_for_a_watch_to_go_on_from() -> None:
    assert trimmed(POD)["metadata"]["resourceVersion"] == "7"


def test_pages_give_items_their_kind_and_the_way_on() -> None:
    body = {"metadata": {"resourceVersion": "9", "continue": "more"}, "items": [POD]}
    page = PartialDecoder("Pod").page(json.dumps(body).encode())
    assert (page.resource_version, page.rest) == ("9", "more")
    assert page.items == [trimmed(POD)]
    assert PartialDecoder("Pod").page(b'{"metadata":{},"items":null}').items == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"5"}}}',
        b'{"type":"ERROR","object":{"kind":"Status","code":410}}',
        b'{"type":"ADDED","object":{"metadata":{"labels":{"a":1}}}}',
        b"no json",
        b"",
    ],
)
def test_other_lines_pass_untouched(line: bytes) -> None:
    assert PartialDecoder("Pod").event(line) == line


def test_a_list_that_is_none_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        PartialDecoder("Pod").page(b"<html>")
