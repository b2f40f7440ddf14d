# SPDX-License-Identifier: Apache-2.0
"""Translation of Kubernetes objects into the mesh's model."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import kube_objects as objects
from tests.support.kube_objects import AMBIENT
from ztunnel.kube.objects import translation
from ztunnel.kube.objects.fields import Object, TranslateError
from ztunnel.mesh.model import Endpoint, Service, ServicePort, TunnelProtocol, Workload

CLUSTER = translation.Cluster("td.example", "east")


def workload(obj: Object, namespace_labels: dict[str, str] | None = None) -> Workload:
    found = translation.workload(translation.read_pod(obj), namespace_labels or {}, CLUSTER)
    assert found is not None
    return found


def service(obj: Object, *slices: Object) -> Service:
    pieces = [piece for entry in slices if (piece := translation.read_slice(entry))]
    found = translation.service(translation.read_service(obj), pieces, CLUSTER)
    assert found is not None
    return found


def owner(kind: str, name: str) -> list[Object]:
    return [{"kind": kind, "name": name, "controller": True}]


def test_pod_becomes_workload() -> None:
    obj = objects.pod(
        "web", "10.0.0.1", "fd00::0:1", labels={"app": "web"}, serviceAccountName="sa"
    )
    assert workload(obj) == Workload(
        uid="east//Pod/default/web",
        pod_uid="uid-default-web",
        name="web",
        namespace="default",
        service_account="sa",
        node="node1",
        addresses=("10.0.0.1", "fd00::1"),
        trust_domain="td.example",
        cluster="east",
        labels={"app": "web"},
        owner_name="web",
    )


def test_minimal_pod_gets_defaults() -> None:
    found = workload(
        {"kind": "Pod", "metadata": {"name": "a", "uid": "u"}, "status": {"podIP": "10.0.0.1"}}
    )
    assert found.namespace == "default"
    assert found.service_account == "default"
    assert found.addresses == ("10.0.0.1",)
    assert not found.ready
    assert found.capacity == 1


def test_explicit_nulls_are_absent_fields() -> None:
    obj = objects.pod("web", "10.0.0.1")
    obj["metadata"] |= {"labels": None, "annotations": None, "ownerReferences": None}
    obj["spec"] |= {"hostNetwork": None, "serviceAccountName": None}
    assert workload(obj).labels == {}


@pytest.mark.parametrize(
    ("namespace_labels", "labels", "protocol"),
    [
        ({}, {}, TunnelProtocol.NONE),
        (AMBIENT, {}, TunnelProtocol.HBONE),
        ({}, AMBIENT, TunnelProtocol.HBONE),
        (AMBIENT, {"istio.io/dataplane-mode": "none"}, TunnelProtocol.NONE),
    ],
)
def test_enrollment_determines_protocol(
    namespace_labels: dict[str, str], labels: dict[str, str], protocol: TunnelProtocol
) -> None:
    found = workload(objects.pod("web", "10.0.0.1", labels=labels), namespace_labels)
    assert found.protocol is protocol
    assert found.capture_refused == ""


def test_rejected_capture_has_reason_and_hint() -> None:
    found = workload(objects.pod("web", "10.0.0.1", hostNetwork=True), AMBIENT)
    assert found.protocol is TunnelProtocol.NONE
    assert "host network" in found.capture_refused
    assert "remove the label" in found.capture_refused


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_finished_pod_is_not_a_workload(phase: str) -> None:
    pod = translation.read_pod(objects.pod("web", "10.0.0.1", phase=phase))
    assert translation.workload(pod, AMBIENT, CLUSTER) is None


def test_pod_without_address_is_not_a_workload() -> None:
    pod = translation.read_pod({"kind": "Pod", "metadata": {"name": "a"}})
    assert translation.workload(pod, AMBIENT, CLUSTER) is None


@pytest.mark.parametrize(
    ("owners", "found"),
    [
        (owner("ReplicaSet", "web-5d9f"), ("deployment", "web")),
        (owner("ReplicaSet", "bare"), ("pod", "web-5d9f-x")),
        (owner("Job", "once"), ("job", "once")),
        (owner("Job", "nightly-28436100"), ("cronjob", "nightly")),
        (owner("CronJob", "nightly"), ("cronjob", "nightly")),
        (owner("DaemonSet", "logs"), ("pod", "web-5d9f-x")),
        ([], ("pod", "web-5d9f-x")),
    ],
)
def test_owner_is_top_level_resource(owners: list[Object], found: tuple[str, str]) -> None:
    labels = {"pod-template-hash": "5d9f"}
    got = workload(objects.pod("web-5d9f-x", "10.0.0.1", labels=labels, owners=owners))
    assert (got.owner_kind, got.owner_name) == found


@pytest.mark.parametrize("text", ["0", "-1", "many", "", "1.5", "9" * 50, "²"])
def test_invalid_capacity_counts_as_one_with_warning(text: str) -> None:
    pod = translation.read_pod(
        objects.pod("web", "10.0.0.1", annotations={translation.CAPACITY_ANNOTATION: text})
    )
    assert pod.capacity == 1
    assert "default/web" in pod.warning
    assert translation.CAPACITY_ANNOTATION in pod.warning


def test_capacity_annotation() -> None:
    annotations = {translation.CAPACITY_ANNOTATION: "7"}
    pod = translation.read_pod(objects.pod("web", "10.0.0.1", annotations=annotations))
    assert (pod.capacity, pod.warning) == (7, "")


def test_unquoted_label_value_becomes_string() -> None:
    found = workload(objects.pod("web", "10.0.0.1", labels={"version": 1, "canary": True}))
    assert found.labels == {"version": "1", "canary": "true"}


@pytest.mark.parametrize(
    ("field", "obj"),
    [
        ("status.podIPs[0].ip", objects.pod("web", "10.0.0.256")),
        ("spec.hostNetwork", objects.pod("web", "10.0.0.1", hostNetwork="yes")),
        ("metadata.uid", {"kind": "Pod", "metadata": {"name": "web"}, "status": {"podIP": "::1"}}),
        ("metadata.labels", objects.pod("web", "10.0.0.1", labels={"a": {}})),
        ("spec", {"kind": "Pod", "metadata": {"name": "web"}, "spec": []}),
    ],
)
def test_error_names_object_and_field(field: str, obj: Object) -> None:
    with pytest.raises(TranslateError) as error:
        translation.read_pod(obj)
    assert "Pod default/web" in str(error.value)
    assert field in str(error.value)


def test_service_with_endpoints_of_both_families() -> None:
    found = service(
        objects.service("web", "10.96.0.1", "fd00:96::1"),
        objects.endpoint_slice("web-4", "web", objects.endpoint("10.0.0.1", "a")),
        objects.endpoint_slice("web-6", "web", objects.endpoint("fd00::0:1", "a"), family="IPv6"),
    )
    uid = "east//Pod/default/a"
    assert found == Service(
        namespace="default",
        name="web",
        vips=("10.96.0.1", "fd00:96::1"),
        ports=(ServicePort(80, "http", app_protocol="http"),),
        endpoints=(
            Endpoint(address="10.0.0.1", ports={"http": 8080}, workload=uid),
            Endpoint(address="fd00::1", ports={"http": 8080}, workload=uid),
        ),
        hostname="web.default.svc.cluster.local",
    )


BALANCED: Any = {"type": "LoadBalancer", "clusterIP": "10.96.0.1"}


@pytest.mark.parametrize(
    ("spec", "ingress", "expected"),
    [
        (BALANCED, [{"ip": "203.0.113.1"}, {"ip": "2001:DB8::1", "ipMode": "VIP"}],
         ("203.0.113.1", "2001:db8::1")),
        (BALANCED, [{"hostname": "lb.example.com"}], ()),
        (BALANCED, [{"ip": "203.0.113.1", "ipMode": "Proxy"}], ()),
        (BALANCED, [], ()),
        ({**BALANCED, "type": "NodePort"}, [{"ip": "203.0.113.1"}], ()),
        ({**BALANCED, "loadBalancerSourceRanges": ["192.0.2.0/24"]}, [{"ip": "203.0.113.1"}], ()),
    ],
)  # fmt: skip
def test_addresses_of_load_balancers_that_nodes_serve(
    spec: Any, ingress: list[Any], expected: tuple[str, ...]
) -> None:
    metadata = {"name": "web", "namespace": "default"}
    status = {"loadBalancer": {"ingress": ingress}}
    found = service({"kind": "Service", "metadata": metadata, "spec": spec, "status": status})
    assert found.load_balancer_ips == expected


def test_external_ips_and_node_ports_of_a_service() -> None:
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    found = service(objects.service("web", externalIPs=["198.51.100.1"], ports=ports))
    assert found.external_ips == ("198.51.100.1",)
    assert found.ports[0].node_port == 30080


@pytest.mark.parametrize("spec", [{"clusterIPs": ["None"]}, {"clusterIP": "None"}, {}])
def test_headless_service_has_no_virtual_address(spec: Any) -> None:
    assert service({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}).vips == ()


def test_endpoint_in_two_slices_is_merged() -> None:
    found = service(
        objects.service("web", "10.96.0.1"),
        objects.endpoint_slice("a", "web", objects.endpoint("10.0.0.1", "p", ready=False)),
        objects.endpoint_slice(
            "b", "web", objects.endpoint("10.0.0.1"), port=9090, port_name="admin"
        ),
    )
    assert found.endpoints == (
        Endpoint(
            address="10.0.0.1",
            ports={"http": 8080, "admin": 9090},
            ready=True,
            workload="east//Pod/default/p",
        ),
    )


@pytest.mark.parametrize(("condition", "ready"), [(None, True), (True, True), (False, False)])
def test_endpoint_of_unknown_readiness_is_ready(condition: bool | None, ready: bool) -> None:
    piece = objects.endpoint_slice("a", "web", objects.endpoint("10.0.0.1", ready=condition))
    assert service(objects.service("web"), piece).endpoints[0].ready is ready


def test_slice_with_fqdn_or_without_service_is_ignored() -> None:
    by_name = objects.endpoint_slice("a", "web", objects.endpoint("example.org"), family="FQDN")
    assert translation.read_slice(by_name) is None
    assert translation.read_slice(objects.endpoint_slice("a", "")) is None


def test_external_name_service_is_ignored() -> None:
    spec = translation.read_service(objects.service("web", type="ExternalName"))
    assert translation.service(spec, [], CLUSTER) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
TEMPLATES = [
    (translation.read_pod, objects.pod("web", "10.0.0.1", owners=owner("Job", "x"))),
    (translation.read_service, objects.service("web", "10.96.0.1")),
    (
        translation.read_slice,
        objects.endpoint_slice("a", "web", objects.endpoint("10.0.0.1", "p")),
    ),
    (translation.read_namespace_labels, objects.namespace("a", AMBIENT)),
    (translation.read_node_addresses, objects.node("n", "10.0.0.1")),
]


@given(data=st.data())
def test_any_object_is_read_into_the_declared_types_or_rejected(data: st.DataObject) -> None:
    read, template = data.draw(st.sampled_from(TEMPLATES))

    def mangle(value: Any) -> Any:
        if data.draw(st.integers(0, 9)) == 0:
            return data.draw(JSON)
        if isinstance(value, dict):
            return {key: mangle(inner) for key, inner in value.items()}
        return [mangle(inner) for inner in value] if isinstance(value, list) else value

    obj = {key: value if key == "kind" else mangle(value) for key, value in template.items()}
    try:
        found = read(obj)
    except TranslateError:
        return
    declared = get_type_hints(read)["return"]
    assert msgspec.convert(msgspec.to_builtins(found), declared) == found


@pytest.mark.parametrize(
    ("label", "host_network", "protocol"),
    [
        ("http", False, TunnelProtocol.HBONE),
        ("http", True, TunnelProtocol.NONE),
        ("https", False, TunnelProtocol.NONE),
    ],
)
def test_sidecar_with_tunnel_label_uses_hbone(
    label: str, host_network: bool, protocol: TunnelProtocol
) -> None:
    obj = objects.pod(
        "side",
        "10.0.0.1",
        labels={"networking.istio.io/tunnel": label},
        annotations={"sidecar.istio.io/status": "{}"},
        hostNetwork=host_network,
    )
    found = workload(obj, AMBIENT)
    assert (found.protocol, found.enrolled) == (protocol, False)
