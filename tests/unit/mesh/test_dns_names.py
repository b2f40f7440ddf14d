# SPDX-License-Identifier: Apache-2.0
"""Names in the mesh: services, endpoints, ports, wildcards, short forms, absent names."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import endpoint, mesh, service, workload
from ztunnel.mesh.dns_names import DnsAnswer, SrvTarget, lookup
from ztunnel.mesh.model import Endpoint, Service, ServicePort
from ztunnel.mesh.state import MeshState

HTTP = ServicePort(80, "http")
DB = "db.shop.svc.cluster.local"


def _hosted(address: str, hostname: str = "", *, ready: bool = True) -> Endpoint:
    made = endpoint(address, ready=ready, http=8080)
    return msgspec.structs.replace(made, hostname=hostname)


def _outside(host: str, *vips: str) -> Service:
    """Build the service of a ServiceEntry host."""
    return Service(
        namespace="shop", name=host, vips=vips, ports=(HTTP,), hostname=host, is_service_entry=True
    )


@pytest.fixture(scope="module")
def state() -> MeshState:
    pods = (_hosted("10.244.1.2", "db-0"), _hosted("10.244.1.3", "db-1"), _hosted("fd00::4"))
    gone = _hosted("10.244.1.9", "db-9", ready=False)
    return mesh(
        workload("web-1", "10.244.1.2"),
        service("web", "10.96.0.7", "fd00:96::7", ports=(HTTP,), endpoints=(pods[0],)),
        service("v4", "10.96.0.8", ports=(HTTP, ServicePort(53, "dns", "UDP"))),
        service("db", ports=(HTTP,), endpoints=(*pods, gone)),
        service("empty", ports=(HTTP,)),
        _outside("api.example.com", "240.240.0.1"),
        _outside("*.example.com", "240.240.0.2"),
        _outside("*.deep.example.com", "240.240.0.3"),
        _outside("resolved.example.org"),
    )


WEB = ("10.96.0.7", "fd00:96::7")
FOUND = {
    "web.shop.svc.cluster.local": ("", WEB),
    "v4.shop.svc.cluster.local": ("", ("10.96.0.8",)),
    "db.shop.svc.cluster.local": ("", ("10.244.1.2", "10.244.1.3", "fd00::4")),
    "empty.shop.svc.cluster.local": ("", ()),
    "db-0.db.shop.svc.cluster.local": ("", ("10.244.1.2",)),
    "10-244-1-3.db.shop.svc.cluster.local": ("", ("10.244.1.3",)),
    "fd00--4.db.shop.svc.cluster.local": ("", ("fd00::4",)),
    "10-244-1-2.web.shop.svc.cluster.local": ("", ("10.244.1.2",)),
    "_tcp.web.shop.svc.cluster.local": ("", ()),
    # short forms queried without a search domain
    "web": ("", WEB),
    "web.shop": ("", WEB),
    "web.shop.svc": ("", WEB),
    # what a client's search list makes of them
    "web.shop.shop.svc.cluster.local": ("web.shop.svc.cluster.local", WEB),
    "web.shop.svc.shop.svc.cluster.local": ("web.shop.svc.cluster.local", WEB),
    "web.shop.svc.svc.cluster.local": ("web.shop.svc.cluster.local", WEB),
    "web.shop.svc.cluster.local.shop.svc.cluster.local": ("web.shop.svc.cluster.local", WEB),
    "web.shop.cluster.local": ("web.shop.svc.cluster.local", WEB),
    # hosts outside the cluster
    "api.example.com": ("", ("240.240.0.1",)),
    "api.example.com.shop.svc.cluster.local": ("api.example.com", ("240.240.0.1",)),
    "api.example.com.svc.cluster.local": ("api.example.com", ("240.240.0.1",)),
    "api.example.com.cluster.local": ("api.example.com", ("240.240.0.1",)),
    "www.example.com": ("", ("240.240.0.2",)),
    "a.b.example.com": ("", ("240.240.0.2",)),
    "www.example.com.shop.svc.cluster.local": ("www.example.com", ("240.240.0.2",)),
    "x.deep.example.com": ("", ("240.240.0.3",)),
}
ABSENT = [
    "db-9.db.shop.svc.cluster.local",  # not ready
    "db-7.db.shop.svc.cluster.local",
    "10-244-1-99.web.shop.svc.cluster.local",
    "_https._tcp.web.shop.svc.cluster.local",
    "_http._udp.web.shop.svc.cluster.local",
    "_udp.web.shop.svc.cluster.local",
    "a.b.web.shop.svc.cluster.local",
    "a.b.c.d.web.shop.svc.cluster.local",
]
NOT_OURS = [
    "",
    "example.com",  # a wildcard does not take its own domain
    "ghost.shop.svc.cluster.local",  # perhaps an ExternalName: the cluster's DNS knows
    "cluster.local",
    "svc.cluster.local",
    "shop.svc.cluster.local",
    "10-244-1-2.shop.pod.cluster.local",
    "web.other.svc.cluster.local",
    "kubernetes.io",
    "resolved.example.org",  # known, but without an address of the mesh
    "www.resolved.example.org",
    "7.0.96.10.in-addr.arpa",
    ".".join(["a"] * 40),
]


@pytest.mark.parametrize("name", FOUND)
def test_mesh_names_resolve(state: MeshState, name: str) -> None:
    found = lookup(state, "shop", name)
    assert found is not None
    assert found.exists
    assert (found.alias, found.addresses) == FOUND[name]


@pytest.mark.parametrize("name", ABSENT)
def test_absent_names_of_the_cluster_do_not_exist(state: MeshState, name: str) -> None:
    assert lookup(state, "shop", name) == DnsAnswer("cluster.local", exists=False)


@pytest.mark.parametrize("name", NOT_OURS)
def test_names_outside_the_mesh_are_left_to_the_pods_resolver(state: MeshState, name: str) -> None:
    assert lookup(state, "shop", name) is None


def test_short_names_are_those_of_the_clients_namespace(state: MeshState) -> None:
    assert lookup(state, "other", "web") is None
    found = lookup(state, "other", "web.shop.other.svc.cluster.local")
    assert found is not None
    assert (found.alias, found.addresses) == ("web.shop.svc.cluster.local", WEB)


def test_port_of_a_virtual_address(state: MeshState) -> None:
    found = lookup(state, "shop", "_http._tcp.web.shop.svc.cluster.local")
    assert found is not None
    assert found.targets == (SrvTarget(80, "web.shop.svc.cluster.local", WEB),)
    found = lookup(state, "shop", "_dns._udp.v4.shop.svc.cluster.local")
    assert found is not None
    assert [target.port for target in found.targets] == [53]


def test_srv_of_a_headless_service_lists_each_endpoint(state: MeshState) -> None:
    found = lookup(state, "shop", f"_http._tcp.{DB}")
    assert found is not None
    assert set(found.targets) == {
        SrvTarget(8080, f"db-0.{DB}", ("10.244.1.2",)),
        SrvTarget(8080, f"db-1.{DB}", ("10.244.1.3",)),
        SrvTarget(8080, f"fd00--4.{DB}", ("fd00::4",)),
    }


def test_port_of_a_service_without_endpoints_exists_without_data(state: MeshState) -> None:
    found = lookup(state, "shop", "_http._tcp.empty.shop.svc.cluster.local")
    assert found == DnsAnswer("cluster.local")


def test_negative_answers_name_the_queried_zone(state: MeshState) -> None:
    found = lookup(state, "shop", "www.example.com")
    assert found is not None
    assert found.zone == "example.com"


@given(st.text(alphabet="abwe-_.shopvclutrd0", max_size=300))
def test_lookup_of_any_text_never_raises(name: str) -> None:
    found = lookup(mesh(service("web", "10.96.0.7")), "shop", name)
    assert found is None or found.zone == "cluster.local"
