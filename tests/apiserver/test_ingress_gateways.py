# SPDX-License-Identifier: Apache-2.0
"""The controller runs ingress gateways on a real API server, with the permissions of deploy/.

There is no kubelet and no load balancer: tests set the status of Deployments and Services.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.control_plane import ControlPlane, manifests, wait_until
from tests.support.apiserver.gateway_crds import install_crds
from tests.support.apiserver.gateways import get, put_gateway, wait_condition
from tests.support.apiserver.server import ApiServer
from tests.support.certificates import Authority, server_pair
from ztunnel.l7.names import CertificateSource, ca_id, certificate_id

Json = dict[str, Any]
GROUP = "gateway.networking.k8s.io"
HTTP = {"name": "http", "port": 80, "protocol": "HTTP"}


@pytest.fixture(scope="module")
def mesh(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server with the CRDs and the guard, and a controller."""
    with ApiServer(tmp_path_factory.mktemp("ingress-gateways"), binaries) as server:
        install_crds(server)
        made = ControlPlane(server)
        server.apply(*manifests("controller-guard.yaml"))
        with made.controller("one", "--host-port-namespace=metal"):
            yield made


def put(mesh: ControlPlane, obj: Json) -> None:
    mesh.server.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(obj))


def put_edge(mesh: ControlPlane, namespace: str, *listeners: Json, **fields: Any) -> None:
    """A Gateway `edge`. `fields`: annotations, class_name (istio), and others of its spec."""
    annotations, class_name = fields.pop("annotations", {}), fields.pop("class_name", "istio")
    mesh.namespace(namespace)
    put(
        mesh,
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": namespace, "annotations": annotations},
            "spec": {
                "gatewayClassName": class_name,
                "listeners": list(listeners) or [HTTP],
                **fields,
            },
        },
    )


def https(secret: str, namespace: str = "", name: str = "https", port: int = 443) -> Json:
    ref = {"name": secret, **({"namespace": namespace} if namespace else {})}
    tls = {"certificateRefs": [ref]}
    return {"name": name, "port": port, "protocol": "HTTPS", "tls": tls}


def put_secret(mesh: ControlPlane, namespace: str, name: str, chain: bytes, key: bytes) -> None:
    mesh.namespace(namespace)
    data = {"tls.crt": chain, "tls.key": key}
    put(
        mesh,
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": name, "namespace": namespace},
            "data": {name: base64.b64encode(each).decode() for name, each in data.items()},
        },
    )


def named(mesh: ControlPlane, kind: str, namespace: str, name: str = "edge-istio") -> Json:
    """Wait for an object."""
    found: Json = wait_until(lambda: get(mesh, kind, namespace, name), f"{kind} {namespace}/{name}")
    return found


def ports(mesh: ControlPlane, namespace: str) -> list[tuple[int, str]]:
    found = named(mesh, "service", namespace)["spec"]["ports"]
    return [(each["port"], each["protocol"]) for each in found]


def files(mesh: ControlPlane, namespace: str, name: str = "edge-istio") -> dict[str, bytes]:
    """The content of the Secret with certificates, empty without it."""
    found = get(mesh, "secret", namespace, f"{name}-certificates") or {}
    return {key: base64.b64decode(each) for key, each in (found.get("data") or {}).items()}


def usable(mesh: ControlPlane, namespace: str) -> set[str]:
    """The names of files in the annotation of the Gateway."""
    gateway = get(mesh, "gateway", namespace, "edge") or {"metadata": {}}
    annotations = gateway["metadata"].get("annotations") or {}
    return set(json.loads(annotations.get("ztunnel.dev/gateway-certificates", "{}")))


def wait_file(mesh: ControlPlane, namespace: str, name: str, content: bytes) -> None:
    wait_until(
        lambda: files(mesh, namespace).get(name) == content and name in usable(mesh, namespace),
        f"{name} in the Secret and the annotation",
    )


def grant(namespace: str, origin: str, kind: str = "Gateway", to: str = "Secret") -> Json:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "edge", "namespace": namespace},
        "spec": {
            "from": [{"group": GROUP, "kind": kind, "namespace": origin}],
            "to": [{"group": "", "kind": to}],
        },
    }


def test_classes_are_created_and_accepted(mesh: ControlPlane) -> None:
    for name in ("istio", "ztunnel"):
        found = wait_condition(mesh, "gatewayclass", "default", name, Accepted=("True", "Accepted"))
        assert found["spec"]["controllerName"] == "ztunnel.dev/gateway-controller"


def test_gateway_has_objects_named_after_it_and_its_class(mesh: ControlPlane) -> None:
    put_edge(mesh, "named", HTTP, https("web"))
    assert ports(mesh, "named") == [(80, "TCP"), (443, "TCP")]
    service = named(mesh, "service", "named")
    assert service["spec"]["type"] == "LoadBalancer"
    named(mesh, "serviceaccount", "named")
    pod = named(mesh, "deployment", "named")["spec"]["template"]["spec"]
    assert pod["volumes"][0]["secret"]["secretName"] == "edge-istio-certificates"
    assert get(mesh, "deployment", "named", "edge") is None


def test_node_ports_survive_changes_of_other_listeners(mesh: ControlPlane) -> None:
    put_edge(mesh, "stable")
    (before,) = named(mesh, "service", "stable")["spec"]["ports"]
    tcp = {"name": "tcp", "port": 9000, "protocol": "TCP"}
    udp = {"name": "udp", "port": 9000, "protocol": "UDP"}
    put_edge(mesh, "stable", tcp, udp, {**HTTP, "name": "renamed"})
    wait_until(
        lambda: ports(mesh, "stable") == [(80, "TCP"), (9000, "TCP"), (9000, "UDP")], "the ports"
    )
    after = named(mesh, "service", "stable")["spec"]["ports"]
    assert after[0]["nodePort"] == before["nodePort"]
    template = named(mesh, "deployment", "stable")["metadata"]["generation"]
    assert template == 1, "a change of listeners must not replace pods"


def test_listeners_of_an_admitted_listener_set_have_ports(mesh: ControlPlane) -> None:
    put_edge(mesh, "sets", allowedListeners={"namespaces": {"from": "Same"}})
    assert ports(mesh, "sets") == [(80, "TCP")]
    for namespace in ("sets", "sets-other"):
        mesh.namespace(namespace)
        parent = {"kind": "Gateway", "group": GROUP, "name": "edge", "namespace": "sets"}
        number = 8443 if namespace == "sets" else 9443
        put(
            mesh,
            {
                "apiVersion": f"{GROUP}/v1",
                "kind": "ListenerSet",
                "metadata": {"name": "more", "namespace": namespace},
                "spec": {"parentRef": parent, "listeners": [https("web", port=number)]},
            },
        )
    chain, key = server_pair("sets.example.com")
    put_secret(mesh, "sets", "web", chain, key)
    wait_file(mesh, "sets", f"{certificate_id('Secret', 'sets', 'web')}.crt", chain)
    assert ports(mesh, "sets") == [(80, "TCP"), (8443, "TCP")]
    mesh.server.kubectl("-n", "sets", "delete", "listenerset", "more")
    wait_until(lambda: ports(mesh, "sets") == [(80, "TCP")], "the port is gone")
    wait_until(lambda: files(mesh, "sets") == {}, "the certificate is gone")


@pytest.mark.parametrize(("kind", "node_ports"), [("ClusterIP", False), ("NodePort", True)])
def test_type_of_the_service_changes_in_place(
    mesh: ControlPlane, kind: str, node_ports: bool
) -> None:
    namespace = f"type-{kind.lower()}"
    put_edge(mesh, namespace)
    before = named(mesh, "service", namespace)
    put_edge(mesh, namespace, annotations={"networking.istio.io/service-type": kind})
    wait_until(lambda: named(mesh, "service", namespace)["spec"]["type"] == kind, "the type")
    after = named(mesh, "service", namespace)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert ("nodePort" in after["spec"]["ports"][0]) is node_ports


def test_static_address_is_requested_of_the_load_balancer(mesh: ControlPlane) -> None:
    put_edge(mesh, "static", addresses=[{"type": "IPAddress", "value": "192.0.2.7"}])
    assert named(mesh, "service", "static")["spec"]["loadBalancerIP"] == "192.0.2.7"
    put_edge(mesh, "static")
    wait_until(
        lambda: "loadBalancerIP" not in named(mesh, "service", "static")["spec"], "no address"
    )


def test_certificate_that_appears_later_is_used_and_renewed_within_a_second(
    mesh: ControlPlane,
) -> None:
    put_edge(mesh, "renewed", https("web"))
    named(mesh, "deployment", "renewed")
    assert usable(mesh, "renewed") == set()
    name = certificate_id("Secret", "renewed", "web")
    first = server_pair("web.example.com")
    put_secret(mesh, "renewed", "web", *first)  # as cert-manager does
    wait_file(mesh, "renewed", f"{name}.crt", first[0])
    assert b"PRIVATE KEY" in files(mesh, "renewed")[f"{name}.key"]
    second = server_pair("web.example.com")
    put_secret(mesh, "renewed", "web", *second)
    began = time.monotonic()
    wait_file(mesh, "renewed", f"{name}.crt", second[0])
    assert time.monotonic() - began < 3, "seconds; includes requests of kubectl"


def test_invalid_renewal_leaves_the_certificate_in_use(mesh: ControlPlane) -> None:
    put_edge(mesh, "broken", https("web"))
    name = certificate_id("Secret", "broken", "web")
    first, other = server_pair("web.example.com"), server_pair("web.example.com")
    put_secret(mesh, "broken", "web", *first)
    wait_file(mesh, "broken", f"{name}.crt", first[0])
    before = files(mesh, "broken")
    put_secret(mesh, "broken", "web", other[0], first[1])
    message = "Secret broken/web: tls.key does not belong to the first certificate of tls.crt"
    wait_until(lambda: message in mesh.log("one"), "the error in the log")
    assert files(mesh, "broken") == before
    assert usable(mesh, "broken") == {f"{name}.crt"}
    put_secret(mesh, "broken", "web", *other)
    wait_file(mesh, "broken", f"{name}.crt", other[0])


def test_certificate_of_another_namespace_needs_a_grant(mesh: ControlPlane) -> None:
    put_edge(mesh, "granted", https("web", namespace="vault"))
    chain, key = server_pair("web.example.com")
    put_secret(mesh, "vault", "web", chain, key)
    name = certificate_id("Secret", "vault", "web")
    put_edge(mesh, "marker", https("web"))
    put_secret(mesh, "marker", "web", chain, key)
    wait_file(mesh, "marker", f"{certificate_id('Secret', 'marker', 'web')}.crt", chain)
    assert files(mesh, "granted") == {}
    put(mesh, grant("vault", "granted"))
    wait_file(mesh, "granted", f"{name}.crt", chain)
    mesh.server.kubectl("-n", "vault", "delete", "referencegrant", "edge")
    wait_until(lambda: files(mesh, "granted") == {}, "the certificate is withdrawn")
    wait_until(lambda: usable(mesh, "granted") == set(), "the annotation is empty")


def test_authorities_and_client_certificate_are_provided(mesh: ControlPlane) -> None:
    root = Authority().root_pem
    chain, key = server_pair("gateway.example.com")
    mesh.namespace("clients")
    put_secret(mesh, "clients", "own", chain, key)
    put(
        mesh,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "roots", "namespace": "clients"},
            "data": {"ca.crt": root.decode()},
        },
    )
    refs = [{"group": "", "kind": "ConfigMap", "name": "roots"}]
    tls = {
        "frontend": {"default": {"validation": {"caCertificateRefs": refs}}},
        "backend": {"clientCertificateRef": {"name": "own"}},
    }
    put_edge(mesh, "clients", https("web"), tls=tls)
    bundle = ca_id([CertificateSource("ConfigMap", "clients", "roots")])
    wait_file(mesh, "clients", f"{bundle}.ca", root)
    wait_file(mesh, "clients", f"{certificate_id('Secret', 'clients', 'own')}.crt", chain)


def test_pods_are_annotated_twice_after_a_change(mesh: ControlPlane) -> None:
    put_edge(mesh, "pods", https("web"))
    template = named(mesh, "deployment", "pods")["spec"]["template"]
    metadata = {**template["metadata"], "name": "edge-istio-1", "namespace": "pods"}
    spec = {**template["spec"], "serviceAccountName": "edge-istio"}
    named(mesh, "serviceaccount", "pods")
    put(mesh, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def revision() -> str:
        pod = get(mesh, "pod", "pods", "edge-istio-1") or {"metadata": {}}
        annotations = pod["metadata"].get("annotations") or {}
        return str(annotations.get("ztunnel.dev/certificates-revision", ""))

    assert revision() == ""
    put_secret(mesh, "pods", "web", *server_pair("web.example.com"))
    first = wait_until(revision, "the annotation")
    wait_until(lambda: revision().endswith("/2"), "the second annotation")
    put_secret(mesh, "pods", "web", *server_pair("web.example.com"))
    wait_until(lambda: revision()[:16] != first[:16], "another annotation")


def test_secret_of_the_name_that_is_not_the_gateways_is_left_alone(mesh: ControlPlane) -> None:
    put_secret(mesh, "taken", "edge-istio-certificates", b"mine", b"mine")
    put_secret(mesh, "taken", "web", *server_pair("web.example.com"))
    put_edge(mesh, "taken", https("web"))
    named(mesh, "deployment", "taken")
    put_edge(mesh, "after-taken", https("web"))
    named(mesh, "deployment", "after-taken")
    assert files(mesh, "taken") == {"tls.crt": b"mine", "tls.key": b"mine"}
    assert usable(mesh, "taken") == set()


def set_ready(mesh: ControlPlane, kind: str, namespace: str, name: str) -> None:
    status: Json = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    if kind == "daemonsets":
        status = {
            "currentNumberScheduled": 1,
            "desiredNumberScheduled": 1,
            "numberMisscheduled": 0,
            "numberReady": 1,
        }
    path = f"/apis/apps/v1/namespaces/{namespace}/{kind}/{name}/status"
    mesh.server.request("PATCH", path, {"status": status})


def test_daemon_set_replaces_the_deployment_once_it_is_ready(mesh: ControlPlane) -> None:
    put_edge(mesh, "metal")
    named(mesh, "deployment", "metal")
    annotations = {
        "ztunnel.dev/gateway-workload": "DaemonSet",
        "ztunnel.dev/gateway-host-ports": "true",
    }
    put_edge(mesh, "metal", annotations=annotations)
    spec = named(mesh, "daemonset", "metal")["spec"]["template"]["spec"]
    assert 80 in [each.get("hostPort") for each in spec["containers"][0]["ports"]]
    assert get(mesh, "deployment", "metal", "edge-istio") is not None
    set_ready(mesh, "daemonsets", "metal", "edge-istio")
    wait_until(
        lambda: get(mesh, "deployment", "metal", "edge-istio") is None, "no Deployment any more"
    )


def test_host_ports_are_refused_without_permission(mesh: ControlPlane) -> None:
    annotations = {
        "ztunnel.dev/gateway-workload": "DaemonSet",
        "ztunnel.dev/gateway-host-ports": "true",
    }
    put_edge(mesh, "tenant", annotations=annotations)
    found = wait_condition(
        mesh, "gateway", "tenant", "edge", Accepted=("False", "InvalidParameters")
    )
    assert "may not bind ports of nodes" in json.dumps(found["status"])
    assert get(mesh, "daemonset", "tenant", "edge-istio") is None


def test_objects_of_the_former_class_are_deleted_once_the_new_ones_are_ready(
    mesh: ControlPlane,
) -> None:
    put_edge(mesh, "moving", https("web"))
    put_secret(mesh, "moving", "web", *server_pair("web.example.com"))
    wait_until(lambda: files(mesh, "moving"), "the certificates")
    put_edge(mesh, "moving", https("web"), class_name="ztunnel")
    named(mesh, "deployment", "moving", "edge-ztunnel")
    assert get(mesh, "deployment", "moving", "edge-istio") is not None
    set_ready(mesh, "deployments", "moving", "edge-ztunnel")

    def old() -> list[str]:
        kinds = ("serviceaccount", "deployment", "service")
        return [kind for kind in kinds if get(mesh, kind, "moving", "edge-istio")]

    wait_until(lambda: not old(), lambda: f"no objects of the former class, found {old()}")
    wait_until(lambda: files(mesh, "moving", "edge-ztunnel"), "the certificates of the new class")
    wait_until(lambda: not files(mesh, "moving"), "no certificates of the former class")


def test_everything_of_a_deleted_gateway_is_deleted(mesh: ControlPlane) -> None:
    put_edge(mesh, "gone", https("web"))
    put_secret(mesh, "gone", "web", *server_pair("web.example.com"))
    wait_until(lambda: files(mesh, "gone"), "the certificates")
    mesh.server.kubectl("-n", "gone", "delete", "gateway", "edge")
    names = [("deployment", "edge-istio"), ("secret", "edge-istio-certificates")]
    wait_until(
        lambda: not any(get(mesh, kind, "gone", name) for kind, name in names), "nothing is left"
    )
    assert get(mesh, "secret", "gone", "web") is not None


def test_deleted_class_is_created_again_and_its_gateways_keep_running(mesh: ControlPlane) -> None:
    put_edge(mesh, "classless", class_name="ztunnel")
    before = named(mesh, "deployment", "classless", "edge-ztunnel")["metadata"]["uid"]
    mesh.server.kubectl("delete", "gatewayclass", "ztunnel")
    wait_condition(mesh, "gatewayclass", "default", "ztunnel", Accepted=("True", "Accepted"))
    put_edge(mesh, "after-class", class_name="ztunnel")
    named(mesh, "deployment", "after-class", "edge-ztunnel")
    assert named(mesh, "deployment", "classless", "edge-ztunnel")["metadata"]["uid"] == before


def test_settled_gateway_is_not_written_again(mesh: ControlPlane) -> None:
    put_edge(mesh, "quiet", https("web"))
    chain, key = server_pair("web.example.com")
    put_secret(mesh, "quiet", "web", chain, key)
    wait_file(mesh, "quiet", f"{certificate_id('Secret', 'quiet', 'web')}.crt", chain)
    named(mesh, "deployment", "quiet")
    kinds = [
        ("gateway", "edge"),
        ("deployment", "edge-istio"),
        ("service", "edge-istio"),
        ("secret", "edge-istio-certificates"),
    ]

    def versions() -> list[str]:
        return [named(mesh, kind, "quiet", n)["metadata"]["resourceVersion"] for kind, n in kinds]

    def settled() -> bool:
        before = versions()
        time.sleep(1)
        return versions() == before

    wait_until(settled, "no writes for a second")
    before = versions()
    put_edge(mesh, "later")
    named(mesh, "deployment", "later")
    assert versions() == before


def without_certificates(server: ApiServer) -> ControlPlane:
    """A control plane whose controller has no right on Secrets but those of the CA."""
    install_crds(server)
    made = ControlPlane(server)
    server.kubectl("delete", "clusterrolebinding", "ztunnel-controller-certificates")
    return made


@pytest.mark.parametrize("options", [("--no-gateway-certificates",), ()])
def test_controller_works_without_the_right_on_secrets(
    fresh_server: ApiServer, options: tuple[str, ...]
) -> None:
    mesh = without_certificates(fresh_server)
    with mesh.controller("one", *options):
        put_edge(mesh, "plain", HTTP, https("web"))
        put_secret(mesh, "plain", "web", *server_pair("web.example.com"))
        assert ports(mesh, "plain") == [(80, "TCP"), (443, "TCP")]
        put_gateway(mesh, "way")
        wait_until(lambda: get(mesh, "deployment", "way", "way"), "the waypoint")
        assert files(mesh, "plain") == {}


def test_certificates_can_be_limited_to_namespaces(fresh_server: ApiServer) -> None:
    mesh = without_certificates(fresh_server)
    mesh.namespace("team")
    subject = {"kind": "ServiceAccount", "name": "ztunnel-controller"}
    fresh_server.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "certificates", "namespace": "team"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "ztunnel-controller-certificates",
            },
            "subjects": [{**subject, "namespace": "ztunnel-system"}],
        }
    )
    chain, key = server_pair("web.example.com")
    with mesh.controller("one", "--certificate-namespace=team"):
        for namespace in ("other", "team"):
            put_edge(mesh, namespace, https("web"))
            put_secret(mesh, namespace, "web", chain, key)
        wait_file(mesh, "team", f"{certificate_id('Secret', 'team', 'web')}.crt", chain)
        assert files(mesh, "other") == {}


def test_class_of_istiod_is_left_alone(fresh_server: ApiServer) -> None:
    install_crds(fresh_server)
    mesh = ControlPlane(fresh_server)
    fresh_server.apply(
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "GatewayClass",
            "metadata": {"name": "istio"},
            "spec": {"controllerName": "istio.io/gateway-controller"},
        }
    )
    put_edge(mesh, "theirs")
    with mesh.controller("one"):
        put_edge(mesh, "ours", class_name="ztunnel")
        named(mesh, "deployment", "ours", "edge-ztunnel")
        assert get(mesh, "deployment", "theirs", "edge-istio") is None


def test_class_of_another_name_is_accepted_and_an_event_says_that_it_is_not_served(
    mesh: ControlPlane,
) -> None:
    mesh.server.apply(
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "GatewayClass",
            "metadata": {"name": "edge"},
            "spec": {"controllerName": "ztunnel.dev/gateway-controller"},
        }
    )

    def messages() -> list[str]:
        found = json.loads(mesh.server.kubectl("-n", "default", "get", "events", "-o", "json"))
        return [e["message"] for e in found["items"] if e["involvedObject"]["name"] == "edge"]

    wait_until(lambda: any("not served" in each for each in messages()), "the Event")


def refused(action: Callable[[], object]) -> str:
    from urllib.error import HTTPError

    try:
        action()
    except HTTPError as error:
        return error.read().decode()
    return ""


def test_stolen_token_writes_no_other_secret_and_no_other_annotation(mesh: ControlPlane) -> None:
    put_edge(mesh, "stolen", https("web"))
    put_secret(mesh, "stolen", "web", *server_pair("web.example.com"))
    wait_until(lambda: files(mesh, "stolen"), "the certificates")
    token = mesh.server.token("ztunnel-system", "ztunnel-controller")

    def patch(path: str, body: Json) -> str:
        return refused(
            lambda: mesh.server.request("PATCH", f"{path}?dryRun=All", body, token=token)
        )

    secrets = "/api/v1/namespaces/stolen/secrets"
    assert "may write only" in patch(f"{secrets}/web", {"data": {"tls.crt": "eA=="}})
    own = f"{secrets}/edge-istio-certificates"
    assert patch(own, {"data": {"x": "eA=="}}) == ""
    assert "may write only" in patch(own, {"metadata": {"ownerReferences": None}})
    gateway = f"/apis/{GROUP}/v1/namespaces/stolen/gateways/edge"
    annotations = {"ztunnel.dev/gateway-certificates": "{}"}
    assert patch(gateway, {"metadata": {"annotations": annotations}}) == ""
    for body in (
        {"metadata": {"annotations": {"networking.istio.io/service-type": "ClusterIP"}}},
        {"metadata": {"labels": {"x": "y"}}},
        {"spec": {"gatewayClassName": "other"}},
    ):
        assert "may change only the annotation" in patch(gateway, body)


def set_load_balancer(mesh: ControlPlane, namespace: str, *ingress: Json) -> None:
    """As the controller of a load balancer does."""
    path = f"/api/v1/namespaces/{namespace}/services/edge-istio/status"
    body = {"status": {"loadBalancer": {"ingress": list(ingress)}}}
    mesh.server.request("PATCH", path, body)


def addresses(obj: Json) -> list[str]:
    return [each["value"] for each in obj["status"].get("addresses") or []]


def test_gateway_is_programmed_once_it_has_an_address_and_a_pod(mesh: ControlPlane) -> None:
    put_edge(mesh, "address")
    named(mesh, "deployment", "address")
    named(mesh, "service", "address")
    set_ready(mesh, "deployments", "address", "edge-istio")
    pending = wait_condition(
        mesh, "gateway", "address", "edge", Programmed=("False", "AddressNotAssigned")
    )
    assert addresses(pending) == []
    set_load_balancer(mesh, "address", {"ip": "203.0.113.9"}, {"hostname": "lb.example.com"})
    found = wait_condition(mesh, "gateway", "address", "edge", Programmed=("True", "Programmed"))
    assert addresses(found) == ["203.0.113.9", "lb.example.com"]


def test_address_that_the_load_balancer_does_not_assign_is_not_usable(mesh: ControlPlane) -> None:
    put_edge(mesh, "unusable", addresses=[{"value": "192.0.2.7"}])
    named(mesh, "deployment", "unusable")
    named(mesh, "service", "unusable")
    set_ready(mesh, "deployments", "unusable", "edge-istio")
    set_load_balancer(mesh, "unusable", {"ip": "203.0.113.9"})
    found = wait_condition(
        mesh, "gateway", "unusable", "edge", Programmed=("False", "AddressNotUsable")
    )
    assert "192.0.2.7" in json.dumps(found["status"])
    set_load_balancer(mesh, "unusable", {"ip": "192.0.2.7"})
    found = wait_condition(mesh, "gateway", "unusable", "edge", Programmed=("True", "Programmed"))
    assert addresses(found) == ["192.0.2.7"]


def test_addresses_of_node_ports_are_those_of_nodes_with_ready_pods(mesh: ControlPlane) -> None:
    annotations = {"networking.istio.io/service-type": "NodePort"}
    put_edge(mesh, "nodes", annotations=annotations)
    template = named(mesh, "deployment", "nodes")["spec"]["template"]
    named(mesh, "serviceaccount", "nodes")
    for name, host, is_ready in (("one", "10.0.0.11", "True"), ("two", "10.0.0.12", "False")):
        metadata = {**template["metadata"], "name": name, "namespace": "nodes"}
        put(mesh, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **spec_of(template)})
        status = {
            "hostIP": host,
            "conditions": [{"type": "Ready", "status": is_ready}],
        }
        path = f"/api/v1/namespaces/nodes/pods/{name}/status"
        mesh.server.request("PATCH", path, {"status": status})
    wait_until(
        lambda: addresses(named(mesh, "gateway", "nodes", "edge")) == ["10.0.0.11"],
        "the address of the node with a ready pod",
    )


def spec_of(template: Json) -> Json:
    return {"spec": template["spec"]}


def listener_condition(mesh: ControlPlane, namespace: str, listener: str) -> tuple[str, str, str]:
    """Status, reason and message of ResolvedRefs."""
    gateway = named(mesh, "gateway", namespace, "edge")
    for each in gateway.get("status", {}).get("listeners") or []:
        if each["name"] == listener:
            for one in each["conditions"]:
                if one["type"] == "ResolvedRefs":
                    return one["status"], one["reason"], one["message"]
    return "", "", ""


def test_listener_states_what_is_wrong_with_its_certificate(mesh: ControlPlane) -> None:
    def wait(status: str, reason: str, text: str) -> None:
        wait_until(
            lambda: (
                (found := listener_condition(mesh, "states", "https"))[:2] == (status, reason)
                and text in found[2]
            ),
            lambda: f"{reason} {text}, found {listener_condition(mesh, 'states', 'https')}",
        )

    put_edge(mesh, "states", https("web"))
    wait("False", "InvalidCertificateRef", "Secret states/web")
    first, other = server_pair("web.example.com"), server_pair("web.example.com")
    put_secret(mesh, "states", "web", *first)
    wait("True", "ResolvedRefs", "")
    put_secret(mesh, "states", "web", first[0], other[1])
    wait("False", "InvalidCertificateRef", "the previous version stays in use")
    put_edge(mesh, "states", https("web", namespace="states-vault"))
    wait("False", "RefNotPermitted", "ReferenceGrant")
