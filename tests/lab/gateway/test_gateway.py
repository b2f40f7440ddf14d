# SPDX-License-Identifier: Apache-2.0
"""Requests from outside the cluster through an ingress gateway into ambient pods."""

from __future__ import annotations

import pytest

from tests.lab.gateway import storefront as front
from tests.lab.gateway.storefront import HOST, Storefront
from tests.lab.waypoint import shop
from tests.lab.waypoint.shop import SHOP
from tests.support.waiting import wait_until
from ztunnel.lab.network.addresses import EXTERNAL_ADDRESSES, node_addresses

URL, TLS_URL = f"http://{HOST}/", f"https://{HOST}/"


def policy(action: str, rule: shop.Object, **target: object) -> shop.Object:
    spec = {"action": action, "rules": [rule], **target}
    return shop.obj("security.istio.io/v1", "AuthorizationPolicy", "test", spec=spec)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("url", [URL, TLS_URL])
def test_http_and_https_reach_the_app(storefront: Storefront, url: str, family: int) -> None:
    found = storefront.get(url, family=family)
    assert (found.status, found.version) == (200, "v1"), found.text


def test_node_port_reaches_the_gateway_on_its_node_only(storefront: Storefront) -> None:
    ports = storefront.lab.get("Service", front.DEPLOYMENT, SHOP)["spec"]["ports"]
    number = next(port["nodePort"] for port in ports if port["port"] == front.HTTPS)
    (pod,) = storefront.pods()
    for node in storefront.lab.nodes:
        address = node_addresses(node.index)[0]
        found = storefront.get(f"https://{HOST}:{number}/", address=address)
        assert found.status == (200 if node.name == pod["spec"]["nodeName"] else 0)


def test_address_of_the_client_is_preserved(storefront: Storefront) -> None:
    found = storefront.get(TLS_URL)
    assert found.body["headers"]["x-forwarded-for"] == EXTERNAL_ADDRESSES[0]
    assert found.body["headers"]["x-forwarded-proto"] == "https"


def test_policy_of_the_gateway_uses_the_address_of_the_client(storefront: Storefront) -> None:
    reference = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": front.GATEWAY}
    rule = {"from": [{"source": {"remoteIpBlocks": [f"{EXTERNAL_ADDRESSES[0]}/32"]}}]}
    assert storefront.lab.apply(policy("DENY", rule, targetRefs=[reference])) == []
    try:
        wait_until(lambda: storefront.get(TLS_URL).status == 403, "the policy")
    finally:
        storefront.lab.delete("ap", "test", SHOP)
    wait_until(lambda: storefront.get(TLS_URL).status == 200, "the policy's removal")


@pytest.mark.parametrize("version", ["v1", "v2"])  # on the gateway's node and on the other one
def test_app_admits_the_identity_of_the_gateway(storefront: Storefront, version: str) -> None:
    assert storefront.lab.apply(front.route(version)) == []
    account = f"cluster.local/ns/{SHOP}/sa/{front.DEPLOYMENT}"
    other = f"cluster.local/ns/{SHOP}/sa/my-app"
    selector = {"selector": {"matchLabels": {"app": "my-app"}}}
    try:
        for principal, status in ((account, 200), (other, 503)):
            rule = {"from": [{"source": {"principals": [principal]}}]}
            assert storefront.lab.apply(policy("ALLOW", rule, **selector)) == []
            wait_until(
                lambda: [storefront.get(TLS_URL).status for _ in range(3)] == [status] * 3,  # noqa: B023
                f"{principal}: {status}",
            )
    finally:
        storefront.lab.delete("ap", "test", SHOP)
        storefront.lab.apply(front.route("v1"))


def test_listener_without_certificate_does_not_affect_others(storefront: Storefront) -> None:
    other = front.https("other", "other.example", "absent")
    problems = storefront.lab.apply(*front.gateway(other))
    try:
        assert any("Secret shop/absent does not exist" in each for each in problems)
        assert storefront.get(TLS_URL).status == 200
        assert storefront.get("https://other.example/").status == 0
        other_secret = storefront.certificate("absent", "other.example")
        route = front.route("v2", "other", "other.example")
        assert storefront.lab.apply(other_secret, route) == []
        wait_until(lambda: storefront.get("https://other.example/").version == "v2")
    finally:
        storefront.lab.delete("secret", "absent", SHOP)
        storefront.lab.delete("HTTPRoute", "other", SHOP)
        storefront.lab.apply(*front.gateway())


def test_ingress_of_kubernetes_is_served(storefront: Storefront) -> None:
    parameters = {
        "apiGroup": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "scope": "Namespace",
        "namespace": SHOP,
        "name": front.GATEWAY,
    }
    spec = {"controller": "ztunnel.dev/ingress-controller", "parameters": parameters}
    api = "networking.k8s.io/v1"
    backend = {"service": {"name": "my-app-v2", "port": {"name": "http"}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    ingress = {
        "ingressClassName": "ztunnel",
        "tls": [{"hosts": ["shop.example"], "secretName": "shop-tls"}],
        "rules": [{"host": "shop.example", "http": {"paths": [path]}}],
    }
    admitting = front.gateway()
    admitting[1]["spec"]["allowedListeners"] = {"namespaces": {"from": "Same"}}
    problems = storefront.lab.apply(
        *admitting,
        {"apiVersion": api, "kind": "IngressClass", "metadata": {"name": "ztunnel"}, "spec": spec},
        storefront.certificate("shop-tls", "shop.example"),
        shop.obj(api, "Ingress", "shop", spec=ingress),
    )
    try:
        assert problems == []
        wait_until(lambda: storefront.get("https://shop.example/").version == "v2")
        assert storefront.get("http://shop.example/").version == "v2"
        storefront.lab.delete("ingress", "shop", SHOP)
        wait_until(lambda: storefront.get("https://shop.example/").status == 0)
    finally:
        storefront.lab.delete("ingressclass", "ztunnel", "")
        storefront.lab.delete("secret", "shop-tls", SHOP)
        storefront.lab.apply(*front.gateway())


def test_daemon_set_serves_the_ports_of_all_nodes(storefront: Storefront) -> None:
    lab = storefront.lab
    edge = front.gateway()[1]
    edge["metadata"] |= {
        "name": "edge",
        "annotations": {
            "ztunnel.dev/gateway-workload": "DaemonSet",
            "ztunnel.dev/gateway-host-ports": "true",
            "networking.istio.io/service-type": "ClusterIP",
        },
    }
    del edge["spec"]["infrastructure"]
    route = front.route("v2", "edge", "edge.example")
    route["spec"]["parentRefs"] = [{"name": "edge"}]
    edge["spec"]["listeners"][1]["hostname"] = "edge.example"
    edge["spec"]["listeners"][1]["tls"] = {"certificateRefs": [{"name": "edge-tls"}]}
    assert lab.apply(edge, storefront.certificate("edge-tls", "edge.example"), route) == []
    try:
        for node in lab.nodes:
            for address in node_addresses(node.index):
                found = storefront.get("https://edge.example/", address=address)
                assert (found.status, found.version) == (200, "v2"), found.text
                client = EXTERNAL_ADDRESSES[":" in address]
                assert found.body["headers"]["x-forwarded-for"] == client
    finally:
        for kind, name in (("gateway", "edge"), ("HTTPRoute", "edge"), ("secret", "edge-tls")):
            lab.delete(kind, name, SHOP)
    assert storefront.get("https://edge.example/", address="172.30.0.1").status == 0


def test_keys_are_only_in_the_secrets_and_the_files_of_the_pod(storefront: Storefront) -> None:
    lab = storefront.lab
    url = "http://127.0.0.1:15000/config_dump?include_eds"
    dump = lab.exec(f"deploy/{front.DEPLOYMENT}", "curl", "-sf", url, namespace=SHOP)
    assert "PRIVATE KEY" not in dump.stdout
    assert "gateway-certificates" in dump.stdout
    state = lab.names.state
    found = lab.node_exec(
        "node1", "grep", "-rlE", "PRIVATE KEY|LS0tLS1CRUdJTiBQUklWQVRF", str(state)
    )
    places = {line.removeprefix(f"{state}/").partition("/")[0] for line in found.stdout.split()}
    assert places <= {"secrets", "pods", "ca"}
