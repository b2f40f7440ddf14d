# SPDX-License-Identifier: Apache-2.0
"""The objects that run an ingress gateway."""

from __future__ import annotations

from typing import Any

import pytest

from ztunnel.l7.deployment import (
    DeploymentSettings,
    LiveState,
    gateway_problems,
    gateway_resources,
)
from ztunnel.l7.deployment.resources import possible_gateways, possible_names, resource_name
from ztunnel.l7.deployment.service import GatewayPort, Transport
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Severity

Json = dict[str, Any]
SETTINGS = DeploymentSettings()
PORTS = (
    GatewayPort(443, Transport.TCP, "https"),
    GatewayPort(80, Transport.TCP, "http"),
    GatewayPort(443, Transport.TCP, "tls"),
    GatewayPort(443, Transport.UDP, "http3"),
)


def ingress(class_name: str = "istio", name: str = "edge", **fields: Any) -> L7Object:
    annotations = fields.pop("annotations", {})
    return l7_object(
        {
            "kind": "Gateway",
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
            "spec": {"gatewayClassName": class_name, **fields},
        }
    )


def by_kind(gateway: L7Object, settings: DeploymentSettings = SETTINGS, **live: Any) -> Json:
    state = LiveState(ports=PORTS, **live)
    return {obj["kind"]: obj for obj in gateway_resources(gateway, settings, state)}


def overlaid(**parameters: str) -> tuple[Json, list[str]]:
    gateway = ingress(infrastructure={"parametersRef": {"kind": "ConfigMap", "name": "more"}})
    live = LiveState(ports=PORTS, parameters=parameters)
    found = {obj["kind"]: obj for obj in gateway_resources(gateway, SETTINGS, live)}
    return found, [str(problem) for problem in gateway_problems(gateway, SETTINGS, live)]


@pytest.mark.parametrize("class_name", ["istio", "ztunnel"])
def test_objects_are_named_after_gateway_and_class(class_name: str) -> None:
    objects = gateway_resources(ingress(class_name), SETTINGS)
    assert {obj["metadata"]["name"] for obj in objects} == {f"edge-{class_name}"}
    assert [obj["kind"] for obj in objects] == ["ServiceAccount", "Deployment", "Service"]
    spec = objects[1]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == f"edge-{class_name}"


def test_service_has_one_port_for_each_distinct_listener_port() -> None:
    spec = by_kind(ingress())["Service"]["spec"]
    assert spec["type"] == "LoadBalancer"
    assert [(p["name"], p["port"], p["protocol"], p["appProtocol"]) for p in spec["ports"]] == [
        ("http-80", 80, "TCP", "http"),
        ("https-443", 443, "TCP", "https"),
        ("http3-443", 443, "UDP", "http3"),
    ]
    assert all(port["targetPort"] == port["port"] for port in spec["ports"])


def test_service_without_listeners_has_the_port_of_readiness() -> None:
    (_, _, service) = gateway_resources(ingress(), SETTINGS)
    assert [port["port"] for port in service["spec"]["ports"]] == [15021]


def test_pods_do_not_depend_on_listeners() -> None:
    without = gateway_resources(ingress(), SETTINGS)[1]
    assert by_kind(ingress())["Deployment"] == without


def test_pod_may_bind_low_ports_and_mounts_its_certificates() -> None:
    spec = by_kind(ingress())["Deployment"]["spec"]["template"]["spec"]
    assert spec["securityContext"]["sysctls"] == [
        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
    ]
    (volume,) = spec["volumes"]
    assert volume["secret"]["secretName"] == "edge-istio-certificates"
    assert volume["secret"]["optional"] is True
    (container,) = spec["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == "/etc/ztunnel/gateway-certificates"
    assert mount["readOnly"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_gateways_have_different_users() -> None:
    def user(name: str) -> int:
        spec = by_kind(ingress(name=name))["Deployment"]["spec"]["template"]["spec"]
        found: int = spec["securityContext"]["runAsUser"]
        return found

    users = [user(f"edge{number}") for number in range(20)]
    assert len(set(users)) == 20
    assert all(1000 < each < 65536 for each in users)
    assert user("edge0") == users[0]


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_annotation_sets_the_type_of_the_service(kind: str) -> None:
    gateway = ingress(annotations={"networking.istio.io/service-type": kind})
    assert by_kind(gateway)["Service"]["spec"]["type"] == kind


@pytest.mark.parametrize(
    ("annotations", "text"),
    [
        ({"networking.istio.io/service-type": "ExternalName"}, "none of LoadBalancer"),
        ({"ztunnel.dev/gateway-workload": "StatefulSet"}, "none of Deployment"),
        ({"ztunnel.dev/gateway-host-ports": "yes"}, "neither true nor false"),
        ({"ztunnel.dev/gateway-host-ports": "true"}, "needs ztunnel.dev/gateway-workload"),
    ],
)
def test_invalid_annotation_is_an_error(annotations: dict[str, str], text: str) -> None:
    (problem,) = gateway_problems(ingress(annotations=annotations), SETTINGS)
    assert problem.severity is Severity.ERROR
    assert text in problem.message


def test_annotations_of_ingress_gateways_have_no_effect_on_waypoints() -> None:
    annotations = {"networking.istio.io/service-type": "LoadBalancer"}
    gateway = ingress("istio-waypoint", annotations=annotations)
    (problem,) = gateway_problems(gateway, SETTINGS)
    assert problem.severity is Severity.IGNORED
    assert by_kind(gateway)["Service"]["spec"]["type"] == "ClusterIP"


@pytest.mark.parametrize(
    ("addresses", "requested"),
    [
        ([{"type": "IPAddress", "value": "192.0.2.7"}], "192.0.2.7"),
        ([{"value": "192.0.2.7"}, {"value": "192.0.2.8"}], "192.0.2.7"),
        ([{"type": "IPAddress"}], None),
        ([{"type": "Hostname", "value": "web.example.com"}], None),
        ("invalid", None),
    ],
)
def test_first_ip_address_is_requested_of_the_load_balancer(
    addresses: object, requested: str | None
) -> None:
    spec = by_kind(ingress(addresses=addresses))["Service"]["spec"]
    assert spec.get("loadBalancerIP") == requested


def test_address_is_not_requested_without_a_load_balancer() -> None:
    gateway = ingress(
        annotations={"networking.istio.io/service-type": "NodePort"},
        addresses=[{"value": "192.0.2.7"}],
    )
    assert "loadBalancerIP" not in by_kind(gateway)["Service"]["spec"]


def test_overlay_of_the_service_sets_what_load_balancers_need() -> None:
    found, problems = overlaid(
        service="""
spec:
  externalTrafficPolicy: Local
  loadBalancerClass: example.com/metal
  loadBalancerSourceRanges: [192.0.2.0/24]
  ports: [{port: 80, nodePort: 30080}]
"""
    )
    spec = found["Service"]["spec"]
    assert spec["externalTrafficPolicy"] == "Local"
    assert spec["loadBalancerClass"] == "example.com/metal"
    assert spec["ports"][0]["nodePort"] == 30080
    assert "nodePort" not in spec["ports"][1]
    assert problems == []


@pytest.mark.parametrize(
    ("overlay", "text"),
    [
        ("spec: {ports: [{port: 22, nodePort: 30022}]}", "no listener has the port"),
        ("spec: {ports: [{port: 80, targetPort: 22}]}", "ports[0].targetPort: not honoured"),
        ("spec: {externalIPs: [192.0.2.1]}", "externalIPs: not honoured"),
        ("spec: {selector: {app: other}}", "selector: not honoured"),
        ("spec: {type: ExternalName}", "type: not honoured"),
    ],
)
def test_overlay_cannot_redirect_the_service(overlay: str, text: str) -> None:
    found, problems = overlaid(service=overlay)
    assert found["Service"] == by_kind(ingress())["Service"]
    assert any(text in problem for problem in problems)


def test_host_network_is_not_honoured_with_a_hint() -> None:
    _, (problem,) = overlaid(deployment="spec: {template: {spec: {hostNetwork: true}}}")
    assert "hint: ztunnel.dev/gateway-host-ports" in problem


def daemon_set(**fields: Any) -> L7Object:
    annotations = {"ztunnel.dev/gateway-workload": "DaemonSet", **fields.pop("annotations", {})}
    return ingress(annotations=annotations, **fields)


def test_daemon_set_replaces_the_deployment() -> None:
    found = by_kind(daemon_set(), replicas=3)
    assert list(found) == ["ServiceAccount", "DaemonSet", "Service"]
    spec = found["DaemonSet"]["spec"]
    assert spec["updateStrategy"] == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    pod = by_kind(ingress())["Deployment"]["spec"]["template"]
    assert spec["template"] == pod


def test_host_ports_need_the_permission_of_the_administrator() -> None:
    gateway = daemon_set(annotations={"ztunnel.dev/gateway-host-ports": "true"})
    (problem,) = gateway_problems(gateway, SETTINGS)
    assert problem.severity is Severity.ERROR
    assert "namespace shop may not bind ports of nodes" in problem.message
    permitted = DeploymentSettings(host_port_namespaces=frozenset({"shop"}))
    spec = by_kind(gateway, permitted)["DaemonSet"]["spec"]
    ports = spec["template"]["spec"]["containers"][0]["ports"]
    assert [(p["hostPort"], p["protocol"]) for p in ports if "hostPort" in p] == [
        (80, "TCP"),
        (443, "TCP"),
        (443, "UDP"),
    ]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    anywhere = DeploymentSettings(host_port_namespaces=frozenset({"*"}))
    assert gateway_problems(gateway, anywhere) == ()


def test_overlay_of_the_other_workload_is_reported() -> None:
    _, (problem,) = overlaid(daemonSet="spec: {minReadySeconds: 3}")
    assert "has no effect: it runs as a Deployment" in problem


def test_name_that_is_too_long_is_an_error() -> None:
    (problem,) = gateway_problems(ingress(name="g" * 60), SETTINGS)
    assert problem.severity is Severity.ERROR
    assert gateway_problems(ingress(name="g" * 57), SETTINGS) == ()


def test_names_lead_back_to_the_gateway() -> None:
    for class_name in ("istio", "ztunnel", "istio-waypoint"):
        name = resource_name(ingress(class_name))
        assert name in possible_names("edge")
        assert "edge" in possible_gateways(name)
