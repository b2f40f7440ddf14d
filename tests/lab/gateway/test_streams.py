# SPDX-License-Identifier: Apache-2.0
"""TLS, TCP and UDP from outside the cluster through an ingress gateway into ambient pods.

The servers admit the identity of the gateway only.
"""

from __future__ import annotations

import sys

import pytest

from tests.lab.gateway import storefront as front
from tests.lab.gateway.edge import callers_of_my_app, strict
from tests.lab.gateway.storefront import HOST, Storefront
from tests.lab.helpers.harness import APPS
from tests.lab.waypoint import shop
from tests.lab.waypoint.shop import SHOP, Object
from tests.support.waiting import wait_until

PASS_PORT, END_PORT, TCP_PORT, UDP_PORT = 8443, 8444, 9000, 7101
SERVER = """
import socket, ssl, sys, threading
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/etc/server/tls.crt", "/etc/server/tls.key")
def serve(port, tls):
    listener = socket.create_server(("", port))
    while True:
        sock, peer = listener.accept()
        try:
            if tls:
                sock = context.wrap_socket(sock, server_side=True)
            sock.sendall(f"{'tls' if tls else 'tcp'} {peer[0]}".encode())
        except OSError:
            pass
        sock.close()
threading.Thread(target=serve, args=(9000, False), daemon=True).start()
serve(8443, True)
"""
CLIENT = """
import socket, ssl, sys
kind, address, port, root, name = sys.argv[1:]
if kind == "udp":
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(3)
    sock.connect((address, int(port)))
    sock.send(b"x")
else:
    sock = socket.create_connection((address, int(port)), 3)
    if kind == "tls":
        sock = ssl.create_default_context(cafile=root).wrap_socket(sock, server_hostname=name)
print(sock.recv(1000).decode())
"""


def servers() -> list[Object]:
    """One pod with TLS and TCP, one with UDP; both on the node without the gateway."""
    stream = shop.pod("stream", "node2", "my-app")
    datagram = shop.pod("datagram", "node2", "my-app")
    for pod in (stream, datagram):
        pod["metadata"]["labels"] = {"app": "my-app", "kind": pod["metadata"]["name"]}
    (container,) = stream["spec"]["containers"]
    container["command"] = [sys.executable, "-c", SERVER]
    container["volumeMounts"] = [{"name": "certificate", "mountPath": "/etc/server"}]
    secret = {"secretName": front.CERTIFICATE}
    stream["spec"]["volumes"] = [{"name": "certificate", "secret": secret}]
    datagram["spec"]["containers"][0]["command"] = [sys.executable, str(APPS / "udp_server.py")]
    return [
        stream,
        datagram,
        service("stream", ("tls", PASS_PORT, "TCP"), ("tcp", TCP_PORT, "TCP")),
        service("datagram", ("udp", UDP_PORT, "UDP")),
    ]


def service(name: str, *ports: tuple[str, int, str]) -> Object:
    found = [{"name": n, "port": port, "protocol": protocol} for n, port, protocol in ports]
    return shop.obj("v1", "Service", name, spec={"selector": {"kind": name}, "ports": found})


def listeners() -> list[Object]:
    certificate = {"certificateRefs": [{"name": front.CERTIFICATE}]}
    passed = {"hostname": HOST, "protocol": "TLS", "tls": {"mode": "Passthrough"}}
    ended = {"hostname": HOST, "protocol": "TLS", "tls": certificate}
    return [
        {"name": "pass", "port": PASS_PORT, **passed},
        {"name": "end", "port": END_PORT, **ended},
        {"name": "tcp", "port": TCP_PORT, "protocol": "TCP"},
        {"name": "udp", "port": UDP_PORT, "protocol": "UDP"},
    ]


def route(kind: str, name: str, service: str, port: int, section: str, **fields: object) -> Object:
    spec = {
        "parentRefs": [{"name": front.GATEWAY, "sectionName": section}],
        "rules": [{"backendRefs": [{"name": service, "port": port}]}],
        **fields,
    }
    return shop.obj(front.API, kind, name, spec=spec)


def receive(streams: Storefront, kind: str, port: int, name: str = HOST) -> str:
    """What a client outside the cluster receives; empty if there is no answer."""
    root = str(streams.root_file)
    argv = (sys.executable, "-c", CLIENT, kind, streams.address(), str(port), root, name)
    return streams.lab.external_exec(*argv).stdout.strip()


@pytest.fixture(scope="module")
def streams(storefront: Storefront) -> Storefront:
    account = f"cluster.local/ns/{SHOP}/sa/{front.DEPLOYMENT}"
    routes = [
        route("TLSRoute", "pass", "stream", PASS_PORT, "pass", hostnames=[HOST]),
        route("TCPRoute", "end", "stream", TCP_PORT, "end"),
        route("TCPRoute", "tcp", "stream", TCP_PORT, "tcp"),
        route("UDPRoute", "udp", "datagram", UDP_PORT, "udp"),
    ]
    guards = strict(), callers_of_my_app(account)
    assert storefront.lab.apply(*servers(), *front.gateway(*listeners()), *routes, *guards) == []
    wait_until(lambda: receive(storefront, "tcp", TCP_PORT), "the gateway forwards", timeout_s=30)
    return storefront


def gateway_ip(streams: Storefront) -> str:
    (pod,) = streams.pods()
    return str(pod["status"]["podIP"])


@pytest.mark.parametrize(
    ("kind", "port", "server"),
    [("tls", PASS_PORT, "tls"), ("tls", END_PORT, "tcp"), ("tcp", TCP_PORT, "tcp")],
)
def test_streams_reach_the_server_under_the_gateways_identity(
    streams: Storefront, kind: str, port: int, server: str
) -> None:
    wait_until(
        lambda: receive(streams, kind, port) == f"{server} {gateway_ip(streams)}",
        lambda: receive(streams, kind, port),
    )


def test_other_server_name_is_refused(streams: Storefront) -> None:
    assert receive(streams, "tls", PASS_PORT, "other.example") == ""
    assert receive(streams, "tls", END_PORT, "other.example") == ""


def test_datagrams_reach_the_server(streams: Storefront) -> None:
    wait_until(lambda: gateway_ip(streams) in receive(streams, "udp", UDP_PORT))


def test_policy_refuses_clients_by_address(streams: Storefront) -> None:
    """The server of TCP sends first, so that Envoy's own filters would decide too late."""
    reference = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": front.GATEWAY}
    spec = {
        "action": "DENY",
        "targetRefs": [reference],
        "rules": [{"to": [{"operation": {"ports": [str(TCP_PORT), str(UDP_PORT)]}}]}],
    }
    policy = shop.obj("security.istio.io/v1", "AuthorizationPolicy", "streams", spec=spec)
    assert streams.lab.apply(policy) == []
    try:
        wait_until(lambda: receive(streams, "tcp", TCP_PORT) == "", "the policy applies")
        assert receive(streams, "udp", UDP_PORT) == ""
        assert receive(streams, "tls", END_PORT).startswith("tcp")
    finally:
        streams.lab.delete("AuthorizationPolicy", "streams", SHOP)
    wait_until(lambda: receive(streams, "tcp", TCP_PORT), "the policy is removed")
