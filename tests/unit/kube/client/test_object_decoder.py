# SPDX-License-Identifier: Apache-2.0
"""The decoder returns every field that the cluster view uses, and no other."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ztunnel.kube.client.object_decoder import Event, EventType, PartialDecoder
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.policy.model import (
    Action,
    AuthorizationPolicy,
    Level,
    MtlsMode,
    PeerAuthentication,
    Selection,
)

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
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.9",
        "clusterIPs": ["10.96.0.9"],
        "externalIPs": ["198.51.100.1"],
        "ports": [{"port": 80, "nodePort": 30080}],
    },
    "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}]}},
}


def decoded(obj: dict[str, Any]) -> dict[str, Any]:
    line = json.dumps({"type": "ADDED", "object": obj}).encode()
    event = PartialDecoder(obj["kind"]).event(line)
    assert event.type is EventType.UPSERT
    return event.object


def test_view_of_partial_objects_equals_view_of_full_objects() -> None:
    full, partial = ClusterView("td", "c"), ClusterView("td", "c")
    for obj in (SERVICE, SLICE, POD):
        full.upsert(obj)
        partial.upsert(decoded(obj))
    assert partial.snapshot() == full.snapshot()
    assert partial.errors() == full.errors() == {}
    (workload,) = partial.snapshot().workloads
    assert (workload.capacity, workload.owner_name, workload.ready) == (3, "j", True)
    (service,) = partial.snapshot().services
    assert [endpoint.hostname for endpoint in service.endpoints] == ["a-0"]
    assert service.outside_ips == ("203.0.113.1", "198.51.100.1")
    assert service.ports[0].node_port == 30080


def test_unused_fields_are_dropped() -> None:
    pod = decoded(POD)
    assert set(pod["spec"]) == {"nodeName", "serviceAccountName"}
    assert set(pod["metadata"]["annotations"]) == {
        "sidecar.istio.io/status",
        "ambient.ztunnel.dev/capacity",
    }
    assert "managedFields" not in pod["metadata"]
    assert len(json.dumps(pod)) < 1000


def test_only_name_of_service_account_is_decoded() -> None:
    metadata = {"name": "web", "namespace": "shop", "resourceVersion": "7"}
    more = {"uid": "u", "labels": {"a": "b"}, "annotations": {"istio.io/a": "b"}}
    account = {"kind": "ServiceAccount", "metadata": metadata | more, "secrets": [{"name": "s"}]}
    expected = {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata}
    assert decoded(account) == expected
    body = json.dumps({"metadata": {}, "items": [account]}).encode()
    assert PartialDecoder("ServiceAccount").page(body).items == [expected]


def test_resource_version_is_decoded() -> None:
    assert decoded(POD)["metadata"]["resourceVersion"] == "7"


def test_page_has_items_with_kind_and_continue_token() -> None:
    body = {"metadata": {"resourceVersion": "9", "continue": "more"}, "items": [POD]}
    page = PartialDecoder("Pod").page(json.dumps(body).encode())
    assert (page.resource_version, page.continue_token) == ("9", "more")
    assert page.items == [decoded(POD)]
    assert PartialDecoder("Pod").page(b'{"metadata":{},"items":null}').items == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"5"}}}',
            Event(EventType.BOOKMARK, {"metadata": {"resourceVersion": "5"}}),
        ),
        (
            b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}',
            Event(EventType.ERROR, {"code": 410, "message": "too old"}),
        ),
        (
            b'{"type":"DELETED","object":{"metadata":{"name":"a","namespace":"b"}}}',
            Event(
                EventType.DELETE,
                {
                    "kind": "ConfigMap",
                    "apiVersion": "v1",
                    "metadata": {"name": "a", "namespace": "b"},
                },
            ),
        ),
    ],
)
def test_other_event_types(line: bytes, expected: Event) -> None:
    assert PartialDecoder("ConfigMap").event(line) == expected


def test_object_with_unexpected_field_type_is_decoded_completely() -> None:
    """The view then reports the error with the object's name."""
    line = b'{"type":"ADDED","object":{"metadata":{"name":"a","labels":{"a":1}}}}'
    event = PartialDecoder("Pod").event(line)
    assert event.object["metadata"] == {"name": "a", "labels": {"a": 1}}
    view = ClusterView("td", "c")
    view.upsert(event.object)


@pytest.mark.parametrize(
    "line",
    [b"not JSON", b"", b"[]", b'{"type":"NEW","object":{}}', b'{"type":"ADDED","object":{}}'],
)
def test_malformed_event_is_an_error(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        PartialDecoder("Pod").event(line)


def test_malformed_list_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        PartialDecoder("Pod").page(b"<html>")


DEEP = b"[" * 5000 + b"]" * 5000
POLICY = b"""{"type":"ADDED","object":{"metadata":{"name":"deny","namespace":"shop",
"resourceVersion":"7"},"spec":{"selector":{"matchLabels":{"app":"web"}},"action":"DENY",%s}}}"""


def policy_of(line: bytes) -> AuthorizationPolicy:
    view = ClusterView("td", "c")
    view.upsert(PartialDecoder("AuthorizationPolicy").event(line).object)
    (policy,) = view.snapshot().policies
    assert isinstance(policy, AuthorizationPolicy)
    assert "rejected, fails closed" in view.errors()["AuthorizationPolicy shop/deny"]
    return policy


@pytest.mark.parametrize(
    "member",
    [
        b'"x":' + DEEP,
        b'"rules":[{"from":%s}]' % DEEP,
        b'"rules":[{"x":%s}]' % (b"[" * 70 + b"]" * 70),
        b'"x":%s' % (b'{"a":' * 900 + b"1" + b"}" * 900),
    ],
)
def test_policy_with_undecodable_member_denies_what_it_selects(member: bytes) -> None:
    policy = policy_of(POLICY % member)
    assert policy.refused
    assert policy.action is Action.DENY
    assert policy.selections == (Selection("shop", {"app": "web"}),)
    assert [rule.groups for rule in policy.rules] == [()]


def test_policy_with_undecodable_selection_denies_in_its_namespace() -> None:
    line = POLICY.replace(b'{"matchLabels":{"app":"web"}}', DEEP) % b'"rules":[]'
    policy = policy_of(line)
    assert policy.selections == (Selection("shop"),)
    assert policy.refused == (
        "spec.selector is not decodable (more than 64 levels deep), want a mapping"
    )


def test_policy_with_undecodable_spec_denies_in_its_namespace() -> None:
    line = b'{"type":"ADDED","object":{"metadata":{"name":"deny","namespace":"shop"},"spec":%s}}'
    policy = policy_of(line % DEEP)
    assert policy.selections == (Selection("shop"),)
    assert policy.action is Action.DENY


def test_peer_authentication_with_undecodable_member_is_strict() -> None:
    line = b'{"type":"ADDED","object":{"metadata":{"name":"p","namespace":"shop"},"spec":{"x":%s}}}'
    view = ClusterView("td", "c")
    view.upsert(PartialDecoder("PeerAuthentication").event(line % DEEP).object)
    (policy,) = view.snapshot().policies
    assert isinstance(policy, PeerAuthentication)
    assert (policy.mode, policy.level) == (MtlsMode.STRICT, Level.NAMESPACE)


def test_undecodable_item_leaves_other_items_of_page_unchanged() -> None:
    deep = b'{"metadata":{"name":"deep"},"status":%s,"extra":%s}' % (DEEP, DEEP)
    body = b'{"metadata":{"resourceVersion":"9","continue":"c"},"items":[%s,%s,%s]}'
    first, second = (json.dumps(POD | {"metadata": {"name": name}}).encode() for name in "ab")
    page = PartialDecoder("Pod").page(body % (first, deep, second))
    assert [item["metadata"]["name"] for item in page.items] == ["a", "deep", "b"]
    assert page.items[0] == decoded(POD | {"metadata": {"name": "a"}})
    assert (page.resource_version, page.continue_token, page.unidentified) == ("9", "c", 0)


def test_data_of_secret_is_never_decoded() -> None:
    body = b'{"metadata":{},"items":[{"metadata":{"name":"s"},"data":{"k":"eA=="},"x":%s}]}'
    (secret,) = PartialDecoder("Secret").page(body % DEEP).items
    assert secret.keys() == {"kind", "apiVersion", "metadata"}


@pytest.mark.parametrize(
    ("kind", "chars", "kept"),
    [
        ("BackendTLSPolicy", 65_536, 65_536),
        ("BackendTLSPolicy", 65_537, 256),
        ("HTTPRoute", 65_536, 256),
    ],
)
def test_certificates_are_kept_of_backend_tls_policies_only(
    kind: str, chars: int, kept: int
) -> None:
    annotations = {"ztunnel.dev/ca-certificates": "x" * chars, "istio.io/a": "y" * 1000, "b": "c"}
    metadata = {"name": "a", "namespace": "shop", "generation": 2, "annotations": annotations}
    item = {"metadata": metadata, "spec": {"validation": {}}}
    page = PartialDecoder(kind).page(json.dumps({"metadata": {}, "items": [item]}).encode())
    (found,) = page.items
    assert found["kind"] == kind
    assert found["metadata"]["generation"] == 2
    assert found["spec"] == {"validation": {}}
    found_chars = {name: len(value) for name, value in found["metadata"]["annotations"].items()}
    assert found_chars == {"ztunnel.dev/ca-certificates": kept, "istio.io/a": 256}


@pytest.mark.parametrize("name", ["ztunnel.dev/gateway-certificates", "proxy.istio.io/config"])
@pytest.mark.parametrize(("kind", "kept"), [("Gateway", 4000), ("HTTPRoute", 256)])
def test_long_annotations_are_kept_of_gateways_only(name: str, kind: str, kept: int) -> None:
    obj = {"metadata": {"name": "edge", "annotations": {name: "x" * 4000}}}
    event = PartialDecoder(kind).event(json.dumps({"type": "ADDED", "object": obj}).encode())
    assert len(event.object["metadata"]["annotations"][name]) == kept
