# SPDX-License-Identifier: Apache-2.0
"""Egress through a shared waypoint: hosts outside the cluster by name and wildcard, TLS, policy.

    node1   app (namespace apps)            ──▶ egress (istio-egress, node2) ──▶ machine outside
    node2   app-far, thief (namespace apps) ──▶         "                            "

REGISTRY_ONLY is in force: other destinations are refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.helpers.harness import APPS, addresses, named, python_pod
from tests.lab.waypoint import shop
from tests.support.certificate_authority import CertificateAuthority
from tests.support.waiting import wait_until
from ztunnel.lab import Lab
from ztunnel.lab.network.addresses import EXTERNAL_ADDRESSES, node_addresses

Object = dict[str, Any]
SPACE, EGRESS = "apps", "istio-egress"
USE_WAYPOINT = {
    "istio.io/use-waypoint": "egress",
    "istio.io/use-waypoint-namespace": EGRESS,
}
HTTP = {"number": 80, "name": "http", "protocol": "HTTP"}
TLS = {"number": 443, "name": "tls", "protocol": "TLS"}
TCP = {"number": 9000, "name": "line", "protocol": "TCP"}


def istio(kind: str, name: str, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    group = "security" if kind == "AuthorizationPolicy" else "networking"
    return {
        "apiVersion": f"{group}.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": SPACE, "labels": labels or {}},
        "spec": spec,
    }


def entry(name: str, *hosts: str, **spec: Any) -> Object:
    return istio("ServiceEntry", name, USE_WAYPOINT, hosts=list(hosts), **spec)


def direct() -> Object:
    """A host without a waypoint, which has an IPv4 address only."""
    found = entry(
        "direct",
        "direct.vendor.test",
        ports=[HTTP],
        resolution="STATIC",
        endpoints=[{"address": EXTERNAL_ADDRESSES[0], "ports": {"http": 8080}}],
    )
    found["metadata"]["labels"] = {}
    return found


def entries() -> list[Object]:
    outside = {
        "location": "MESH_EXTERNAL",
        "resolution": "STATIC",
        "endpoints": [{"address": ip} for ip in EXTERNAL_ADDRESSES],
    }
    originated = {**HTTP, "targetPort": 443}
    return [
        entry("api", "api.vendor.test", ports=[HTTP, TLS, TCP], **outside),
        entry("secure", "secure.vendor.test", ports=[originated], **outside),
        entry(
            "range",
            "range.vendor.test",
            addresses=["172.30.0.248/29", "fd00:30::f8/125"],
            ports=[{"number": 9100, "name": "line", "protocol": "TCP"}],
            resolution="NONE",
        ),
        entry("partners", "*.partner.test", ports=[HTTP, TLS], resolution="DYNAMIC_DNS"),
    ]


def policies() -> list[Object]:
    """Only the service account `app` may send requests to the API, and only GET below /v1."""
    target = {"group": "networking.istio.io", "kind": "ServiceEntry", "name": "api"}
    source = {"source": {"principals": [f"cluster.local/ns/{SPACE}/sa/app"]}}
    allowed = [
        {
            "from": [source],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/v1/*"], "ports": ["80"]}}],
        },
        {"from": [source], "to": [{"operation": {"ports": ["443", "9000"]}}]},
    ]
    return [istio("AuthorizationPolicy", "api", targetRefs=[target], action="ALLOW", rules=allowed)]


def waypoint() -> list[Object]:
    made = shop.waypoint("egress", "node2")
    for each in made:
        each["metadata"]["namespace"] = EGRESS
    (listener,) = made[1]["spec"]["listeners"]
    listener["allowedRoutes"] = {"namespaces": {"from": "All"}}
    return made


def names(*more: str) -> Object:
    """What the cluster's DNS server answers; `more` are lines as those of /etc/hosts."""
    hosts = [
        f"{ip} {name}"
        for ip in EXTERNAL_ADDRESSES
        for name in ("*.partner.test", "*.elsewhere.test")
    ]
    hosts += ["127.0.0.1 loopback.partner.test", "169.254.169.254 metadata.partner.test"]
    hosts += [f"{ip} node.partner.test" for ip in node_addresses(2)]
    found = named("ConfigMap", "external-hosts", "kube-system")
    return found | {"data": {"hosts": "\n".join([*hosts, *more])}}


def everything() -> list[Object]:
    ambient = {"istio.io/dataplane-mode": "ambient"}
    return [
        names(),
        named("Namespace", SPACE, **ambient),
        named("Namespace", "plain"),
        named("Namespace", EGRESS, **ambient),
        *(named("ServiceAccount", name, SPACE) for name in ("app", "thief")),
        *waypoint(),
        python_pod("app", "node1", namespace=SPACE, account="app"),
        python_pod("app-far", "node2", namespace=SPACE, account="app"),
        python_pod("thief", "node2", namespace=SPACE, account="thief"),
        *entries(),
        direct(),
        *policies(),
    ]


@dataclass
class World:
    lab: Lab
    authority: CertificateAuthority
    log: Path

    def curl(self, pod: str, url: str, *options: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a response; status 0 without one."""
        done = self.lab.exec(
            pod,
            *("curl", "-sSg", "--max-time", "10", "-w", "\n%{http_code}", *options, url),
            namespace=SPACE,
        )
        text, _, status = done.stdout.rpartition("\n")
        try:
            return int(status), json.loads(text)
        except ValueError:
            return int(status or 0), {}

    def line(self, pod: str, host: str, port: int) -> str:
        """The address that a TCP server outside sends; empty without a connection."""
        script = (
            f"import socket; sock = socket.create_connection(({host!r}, {port}), 10); "
            "sock.sendall(b'hello\\n'); print(sock.recv(99).decode())"
        )
        return self.lab.exec(pod, sys.executable, "-c", script, namespace=SPACE).stdout.strip()

    def clients(self) -> set[str]:
        """The clients that the server outside has seen."""
        return set(self.log.read_text().split()[1:])

    def refused(self, node: str = "node1") -> list[str]:
        log = self.lab.component(node, "proxy").log.read_text(errors="replace")
        return [line for line in log.splitlines() if "refused" in line]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    lab = Lab(
        f"g{os.getpid() % 100000}", agent_options=("--outbound-traffic-policy", "REGISTRY_ONLY")
    )
    directory: Path = tmp_path_factory.mktemp("external")
    authority = CertificateAuthority("vendor")
    certificate, log = directory / "server.pem", directory / "clients"
    certificate.write_text(authority.issue("secure.vendor.test"))
    server = None
    try:
        assert lab.up([]) == []
        for family, (cidr, gateway) in enumerate(
            zip(("10.244.0.0/16", "fd00:10:244::/48"), node_addresses(1), strict=True)
        ):
            option = ("-4", "-6")[family]
            lab.external_exec("ip", option, "route", "add", cidr, "via", gateway, check=True)
        script = str(APPS / "external_server.py")
        argv = lab.external_argv([sys.executable, script, str(certificate)])
        with log.open("wb") as output:
            server = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
        wait_until(lambda: "started" in log.read_text(), log.read_text)
        assert lab.apply(*everything()) == []
        made = World(lab, authority, log)
        wait_until(
            lambda: made.curl("app", "http://api.vendor.test/v1/ready")[0] == 200,
            lambda: str((made.curl("app", "http://api.vendor.test/v1/ready"), made.refused())),
        )
        yield made
    finally:
        if server is not None:
            server.kill()
            server.wait()
        lab.down()


def test_server_sees_the_address_of_the_waypoint_only(world: World) -> None:
    egress = addresses(world.lab, "deploy/egress", EGRESS)
    for pod in ("app", "app-far"):
        for option in ("-4", "-6"):
            status, body = world.curl(pod, "http://api.vendor.test/v1/a", option)
            assert status == 200
            assert body["host"] == "api.vendor.test"
            assert body["client"] in egress.values()
    assert world.clients() <= set(egress.values())  # before any other test


@pytest.mark.parametrize("option", ["-4", "-6"])
def test_host_of_one_family_is_reached_by_both_virtual_addresses(world: World, option: str) -> None:
    status, body = world.curl("app", "http://direct.vendor.test/v1/a", option)
    assert status == 200
    assert body["client"] == addresses(world.lab, "app", SPACE)[4]


def test_policy_decides_by_caller_method_and_path(world: World) -> None:
    url = "http://api.vendor.test/v1/a"
    assert world.curl("app", url)[0] == 200
    assert world.curl("app", url, "-X", "DELETE")[0] == 403
    assert world.curl("app", "http://api.vendor.test/admin")[0] == 403
    assert world.curl("thief", url)[0] == 403


def test_tls_and_tcp_ports_of_a_host_pass_the_waypoint(world: World) -> None:
    egress = set(addresses(world.lab, "deploy/egress", EGRESS).values())
    status, body = world.curl("app", "https://api.vendor.test/x", "-k")
    assert (status, body["server_name"]) == (200, "api.vendor.test")
    assert body["client"] in egress
    assert world.line("app", "api.vendor.test", 9000) in egress
    assert world.line("thief", "api.vendor.test", 9000) == ""


def test_networks_pass_the_waypoint_and_keep_their_addresses(world: World) -> None:
    egress = addresses(world.lab, "deploy/egress", EGRESS)
    for ip in EXTERNAL_ADDRESSES:
        assert world.line("app", ip, 9100) == egress[6 if ":" in ip else 4]
        assert world.line("app", ip, 9101) == ""  # no port of the entry


@pytest.mark.parametrize("option", ["-4", "-6"])
def test_names_below_a_wildcard_are_resolved_by_the_waypoint(world: World, option: str) -> None:
    egress = set(addresses(world.lab, "deploy/egress", EGRESS).values())
    for url in ("http://a.partner.test/x", "http://a.b.partner.test/x", "https://c.partner.test/x"):
        status, body = world.curl("app", url, "-k", option)
        assert status == 200, url
        assert body["client"] in egress
    assert body["server_name"] == "c.partner.test"


def test_names_outside_the_wildcard_are_refused_although_they_resolve(world: World) -> None:
    resolved = ("--connect-to", "::a.partner.test:")
    assert world.curl("app", "http://a.elsewhere.test/", *resolved)[0] == 404
    assert world.curl("app", "https://a.elsewhere.test/", "-k", *resolved)[0] == 0


@pytest.mark.parametrize("name", ["loopback", "metadata", "node", "pod", "service"])
def test_names_that_lead_into_the_cluster_are_refused(world: World, name: str) -> None:
    """A server answers at port 80 of the pod, the Service and the node."""
    lab, serve = world.lab, (sys.executable, "-m", "http.server", "80", "--bind", "::")
    pod = python_pod("web", "node2", namespace="plain")
    pod["spec"]["containers"][0] |= {"command": list(serve), "ports": [{"containerPort": 80}]}
    service = named("Service", "web", "plain") | {
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    }
    agent = python_pod("agent", "node2", namespace="plain")  # every node of a cluster has such pods
    agent["spec"]["hostNetwork"] = True
    assert lab.apply(pod, service, agent) == []
    vip = lab.get("Service", "web", "plain")["spec"]["clusterIP"]
    inside = addresses(lab, "web", "plain")[4], vip
    lab.apply(names(f"{inside[0]} pod.partner.test", f"{vip} service.partner.test"))
    on_node = subprocess.Popen(lab.node_argv("node2", serve), stderr=subprocess.DEVNULL)
    try:
        for ip in (*inside, node_addresses(2)[0]):
            url = f"http://{ip}/"
            argv = ("curl", "-sSf", "--retry", "9", "--retry-connrefused", url)
            assert lab.node_exec("node1", *argv).returncode == 0, ip
        assert world.curl("app", f"http://{name}.partner.test/")[0] == 503
        assert world.curl("app", f"https://{name}.partner.test/", "-k")[0] == 0
    finally:
        on_node.kill()
        on_node.wait()


def test_waypoint_originates_tls_and_verifies_the_server(world: World) -> None:
    url = "http://secure.vendor.test/x"
    rule = istio(
        "DestinationRule",
        "secure",
        host="secure.vendor.test",
        trafficPolicy={"tls": {"mode": "SIMPLE", "sni": "secure.vendor.test"}},
    )
    assert world.lab.apply(rule) == []
    # the system's authorities do not include the server's
    wait_until(lambda: world.curl("app", url)[0] == 503, lambda: str(world.curl("app", url)))
    reference = {"group": "", "kind": "ConfigMap", "name": "authority"}
    target = {"group": "networking.istio.io", "kind": "ServiceEntry", "name": "secure"}
    config_map = named("ConfigMap", "authority", SPACE) | {"data": {"ca.crt": world.authority.pem}}
    policy = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "BackendTLSPolicy",
        "metadata": {"name": "secure", "namespace": SPACE},
        "spec": {
            "targetRefs": [target],
            "validation": {"hostname": "secure.vendor.test", "caCertificateRefs": [reference]},
        },
    }
    assert world.lab.apply(config_map, policy) == []
    wait_until(lambda: world.curl("app", url)[0] == 200, lambda: str(world.curl("app", url)))
    assert world.curl("app", url)[1]["server_name"] == "secure.vendor.test"


def test_direct_connections_are_refused_and_logged_with_the_name(world: World) -> None:
    for ip in EXTERNAL_ADDRESSES:
        host = f"[{ip}]" if ":" in ip else ip
        assert world.curl("app", f"http://{host}/v1/a")[0] == 0  # an address of api.vendor.test
        assert world.curl("app", f"http://{host}:8081/")[0] == 0
    assert world.curl("app", "http://b.elsewhere.test/")[0] == 0
    wait_until(
        lambda: any("dns_name=b.elsewhere.test" in line for line in world.refused()),
        lambda: "\n".join(world.refused()),
    )
    for line in world.refused():  # one for each address that curl tries
        if "dns_name=b.elsewhere.test" in line:
            assert "REGISTRY_ONLY" in line
            assert any(ip in line for ip in EXTERNAL_ADDRESSES)


def test_addresses_survive_deletion_of_the_entry(world: World) -> None:
    def allocated() -> list[Object]:
        found: list[Object] = world.lab.get("ServiceEntry", "api", SPACE)["status"]["addresses"]
        return found

    before = allocated()
    world.lab.delete("ServiceEntry", "api", SPACE)
    wait_until(lambda: world.curl("app", "http://api.vendor.test/v1/a")[0] == 0)
    assert world.lab.apply(entries()[0]) == []
    assert allocated() == before
    wait_until(lambda: world.curl("app", "http://api.vendor.test/v1/a")[0] == 200)
