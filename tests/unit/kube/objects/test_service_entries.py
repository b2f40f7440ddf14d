# SPDX-License-Identifier: Apache-2.0
"""ServiceEntries: translation, visibility, and rejection of invalid entries."""

from __future__ import annotations

import random
from typing import Any

import dns.message
import pytest

from tests.support import kube_objects as objects
from ztunnel.dns import message
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.dns_names import lookup
from ztunnel.mesh.model import Endpoint, Service, SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Passthrough, Refuse, Route
from ztunnel.mesh.routing.outbound import route
from ztunnel.mesh.state import MeshState

TLS = {"number": 443, "name": "tls", "protocol": "TLS"}
SQL = {"number": 5432, "name": "sql", "targetPort": 6432}


def entry(name: str = "out", namespace: str = "default", **spec: Any) -> Object:
    written = {"hosts": ["api.example.com"], "ports": [TLS], **spec}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {name: value for name, value in written.items() if value is not None},
    }


def static(*addresses: str, **spec: Any) -> dict[str, Any]:
    return {
        "resolution": "STATIC",
        "endpoints": [{"address": address} for address in addresses],
        **spec,
    }


def made(*objs: Object) -> ClusterView:
    view = ClusterView("cluster.local", "Kubernetes")
    for obj in objs:
        view.upsert(obj)
    return view


def state(view: ClusterView, *, registry_only: bool = False) -> MeshState:
    found = MeshState(registry_only)
    found.apply(view.snapshot())
    return found


def client(namespace: str = "default") -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/{namespace}/client",
        pod_uid="client-0",
        name="client",
        namespace=namespace,
        service_account="default",
        node="n1",
        addresses=("10.244.1.2",),
    )


def route_to(mesh: MeshState, ip: str, port: int = 443, namespace: str = "default") -> Route:
    return route(mesh, client(namespace), SocketAddress(ip, port), 0.0)


def addresses(mesh: MeshState, name: str, namespace: str = "default") -> tuple[str, ...] | None:
    found = lookup(mesh, namespace, name)
    return None if found is None else found.addresses


def only_service(view: ClusterView) -> Service:
    (service,) = view.snapshot().services
    return service


def test_static_entry_has_name_and_virtual_address() -> None:
    spec = static("192.0.2.7", addresses=["240.240.0.7"], ports=[SQL])
    mesh = state(made(entry(**spec)))
    assert addresses(mesh, "api.example.com") == ("240.240.0.7",)
    where = route_to(mesh, "240.240.0.7", 5432)
    assert where == Passthrough(SocketAddress("192.0.2.7", 6432), None, "api.example.com")
    assert isinstance(route_to(mesh, "240.240.0.7", 80), Refuse)


def test_name_without_virtual_address_resolves_to_endpoints() -> None:
    mesh = state(made(entry(**static("192.0.2.7", "2001:db8::7"))))
    assert set(addresses(mesh, "api.example.com") or ()) == {"192.0.2.7", "2001:db8::7"}
    assert route_to(mesh, "192.0.2.7") == Passthrough(
        SocketAddress("192.0.2.7", 443), None, "api.example.com"
    )


def test_dns_response_for_wildcard_host() -> None:
    mesh = state(made(entry(**static("192.0.2.7", hosts=["*.example.com"]))))
    query = dns.message.make_query("a.b.example.com", "A")
    reply = message.answer(
        query.to_wire(), lambda name: lookup(mesh, "default", name), shuffle=random.Random(1)
    )
    assert reply is not None
    assert [str(each) for each in dns.message.from_wire(reply).answer] == [
        "a.b.example.com. 30 IN A 192.0.2.7"
    ]


def test_endpoint_ports_override_target_port() -> None:
    written = {"address": "192.0.2.7", "ports": {"sql": 7432}}
    places = [written, {"address": "192.0.2.8"}]
    found = only_service(made(entry(ports=[SQL], resolution="STATIC", endpoints=places)))
    assert [each.ports for each in found.endpoints] == [{"sql": 7432}, {"sql": 6432}]


def test_each_host_is_a_service() -> None:
    view = made(entry(hosts=["a.example.com", "*.b.example.com"], **static("192.0.2.7")))
    assert {each.key for each in view.snapshot().services} == {
        "default/a.example.com",
        "default/*.b.example.com",
    }
    view.drain()
    view.upsert(entry(hosts=["a.example.com"], **static("192.0.2.7")))
    assert view.drain().removed_services == ("default/*.b.example.com",)
    view.delete("ServiceEntry", "default", "out")
    assert view.drain().removed_services == ("default/a.example.com",)
    assert not view.snapshot()


def test_exact_host_takes_precedence_over_wildcard() -> None:
    mesh = state(
        made(
            entry("all", hosts=["*.example.com"], **static("192.0.2.7")),
            entry("one", hosts=["api.example.com"], resolution="DNS"),
        )
    )
    assert addresses(mesh, "other.example.com") == ("192.0.2.7",)
    assert addresses(mesh, "api.example.com") is None


# Selected pods


def test_workload_selector_follows_pods_of_namespace() -> None:
    taken = {"labels": {"app": "db"}}
    selecting = entry(resolution="STATIC", workloadSelector=taken, ports=[SQL])
    view = made(selecting, objects.pod("other", "10.0.0.9", labels={"app": "web"}))
    assert only_service(view).endpoints == ()
    view.upsert(objects.pod("db-0", "10.0.0.1", labels={"app": "db", "x": "y"}))
    view.upsert(objects.pod("db-1", "10.0.0.2", labels={"app": "db"}, ready=False))
    view.upsert(objects.pod("db-2", "10.0.0.3", labels={"app": "db"}, namespace="elsewhere"))
    uid = "Kubernetes//Pod/default/db-"
    assert only_service(view).endpoints == (
        Endpoint(address="10.0.0.1", ports={"sql": 6432}, workload=f"{uid}0"),
        Endpoint(address="10.0.0.2", ports={"sql": 6432}, workload=f"{uid}1", ready=False),
    )
    view.upsert(objects.pod("db-0", "10.0.0.1", labels={"app": "web"}))
    view.delete("Pod", "default", "db-1")
    assert only_service(view).endpoints == ()


# Resolution DNS


def test_injected_dns_results_become_endpoints() -> None:
    view = made(entry(resolution="DNS", addresses=["240.240.0.7"]))
    assert view.entries.names() == {"api.example.com"}
    assert isinstance(route_to(state(view), "240.240.0.7"), Refuse)
    assert view.entries.set_addresses("api.example.com", ("192.0.2.7",))
    assert not view.entries.set_addresses("api.example.com", ("192.0.2.7",))
    mesh = state(view)
    assert route_to(mesh, "240.240.0.7") == Passthrough(
        SocketAddress("192.0.2.7", 443), None, "api.example.com"
    )
    assert addresses(mesh, "api.example.com") == ("240.240.0.7",)


def test_dns_host_without_endpoints_uses_upstream_dns() -> None:
    view = made(entry(resolution="DNS"))
    view.entries.set_addresses("api.example.com", ("192.0.2.7",))
    mesh = state(view, registry_only=True)
    assert addresses(mesh, "api.example.com") is None
    assert isinstance(route_to(mesh, "192.0.2.7"), Passthrough)
    assert isinstance(route_to(mesh, "192.0.2.7", 80), Refuse)


def test_host_with_named_endpoint_resolves_to_its_addresses() -> None:
    view = made(entry(resolution="DNS", endpoints=[{"address": "real.example.net"}]))
    assert view.entries.names() == {"real.example.net"}
    view.entries.set_addresses("real.example.net", ("192.0.2.9",))
    assert addresses(state(view), "api.example.com") == ("192.0.2.9",)


# Resolution NONE, and an outbound policy of REGISTRY_ONLY


def test_registry_only_permits_destinations_of_entries() -> None:
    mesh = state(
        made(
            entry("net", addresses=["198.51.100.0/24"]),
            entry("place", hosts=["b.example.com"], **static("192.0.2.7")),
        ),
        registry_only=True,
    )
    assert route_to(mesh, "198.51.100.9") == Passthrough(
        SocketAddress("198.51.100.9", 443), None, "api.example.com"
    )
    assert isinstance(route_to(mesh, "198.51.100.9", 80), Refuse)
    assert isinstance(route_to(mesh, "192.0.2.7"), Passthrough)
    assert isinstance(route_to(mesh, "203.0.113.1"), Refuse)


# Visibility


def test_export_to() -> None:
    spec = static("192.0.2.7", addresses=["240.240.0.7"], exportTo=[".", "front"])
    mesh = state(made(entry(**spec)))
    for namespace in ("default", "front"):
        assert addresses(mesh, "api.example.com", namespace) == ("240.240.0.7",)
        where = route_to(mesh, "240.240.0.7", namespace=namespace)
        assert where == Passthrough(SocketAddress("192.0.2.7", 443), None, "api.example.com")
    assert addresses(mesh, "api.example.com", "other") is None
    where = route_to(mesh, "240.240.0.7", namespace="other")
    assert where == Passthrough(SocketAddress("240.240.0.7", 443))


def test_export_to_no_namespace() -> None:
    mesh = state(made(entry(**static("192.0.2.7", exportTo=["~"]))))
    assert addresses(mesh, "api.example.com") is None


def test_entry_of_own_namespace_takes_precedence() -> None:
    mesh = state(
        made(
            entry("a", "one", **static("192.0.2.1")),
            entry("b", "two", **static("192.0.2.2")),
        )
    )
    assert addresses(mesh, "api.example.com", "one") == ("192.0.2.1",)
    assert addresses(mesh, "api.example.com", "two") == ("192.0.2.2",)
    assert addresses(mesh, "api.example.com", "three") in (("192.0.2.1",), ("192.0.2.2",))


def test_first_entry_by_name_wins_duplicate_host() -> None:
    view = made(entry("a", **static("192.0.2.1")), entry("b", **static("192.0.2.2")))
    assert only_service(view).endpoints[0].address == "192.0.2.1"
    assert "already defined by ServiceEntry default/a" in view.errors()["ServiceEntry default/b"]
    view.delete("ServiceEntry", "default", "a")
    assert only_service(view).endpoints[0].address == "192.0.2.2"


def test_entry_does_not_override_service_or_pod_address() -> None:
    mesh = state(
        made(
            objects.service("web", "10.96.0.1"),
            objects.endpoint_slice("web-1", "web", objects.endpoint("10.0.0.1", "web")),
            objects.pod("web", "10.0.0.1"),
            entry("a", hosts=["a.example.com"], **static("192.0.2.7", addresses=["10.96.0.1"])),
            entry("b", hosts=["b.example.com"], **static("192.0.2.7", addresses=["10.0.0.1"])),
        )
    )
    service = route_to(mesh, "10.96.0.1", 80)
    assert isinstance(service, Passthrough)
    assert service.address == SocketAddress("10.0.0.1", 8080)
    pod = route_to(mesh, "10.0.0.1")
    assert isinstance(pod, Passthrough)
    assert pod.address == SocketAddress("10.0.0.1", 443)


# Invalid entries


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"hosts": []}, "hosts is []"),
        ({"hosts": ["*"]}, "fully qualified names"),
        ({"hosts": ["web"]}, "fully qualified names"),
        ({"hosts": ["a.*.com"]}, "fully qualified names"),
        ({"hosts": ["bad host.com"]}, "fully qualified names"),
        ({"hosts": ["web.shop.svc.cluster.local"]}, "below cluster.local"),
        ({"ports": None}, "one to 256 ports"),
        ({"ports": [{"number": 0, "name": "a"}]}, "a port number"),
        ({"ports": [{"number": 80}]}, "a unique name"),
        ({"ports": [{"number": 80, "name": "a"}, {"number": 80, "name": "b"}]}, "unique"),
        ({"ports": [{"number": 80, "name": "a"}, {"number": 81, "name": "a"}]}, "unique"),
        ({"ports": [{"number": 80, "name": "a", "protocol": "SCTP"}]}, "protocol"),
        ({"resolution": "MAYBE"}, "resolution is 'MAYBE'"),
        ({"location": "MOON"}, "MESH_EXTERNAL or MESH_INTERNAL"),
        ({"resolution": "STATIC"}, "a workloadSelector, because resolution is STATIC"),
        (static("real.example.net"), "an IP address"),
        (static("unix:///run/x"), "an IP address"),
        (static("192.0.2.7", resolution="NONE"), "STATIC or DNS"),
        (
            static("192.0.2.7", resolution="DNS", workloadSelector={"labels": {"a": "b"}}),
            "with endpoints",
        ),
        (static("192.0.2.7", addresses=["10.0.0.0/8"]), "networks require resolution NONE"),
        (static("192.0.2.7", addresses=["127.0.0.1"]), "from other nodes"),
        (static("192.0.2.7", addresses=["nowhere"]), "IP addresses or networks"),
        (static("192.0.2.7", exportTo=["a b"]), "namespaces"),
        ({"resolution": "STATIC", "workloadSelector": {}}, "at least one label"),
        ({"hosts": ["*.example.com"], "resolution": "DNS"}, "no wildcards"),
        ({"endpoint": []}, "no such field"),
        (
            {
                "resolution": "STATIC",
                "endpoints": [{"address": "192.0.2.7", "ports": {"other": 1}}],
            },
            "names of the entry's ports",
        ),
    ],
    ids=str,
)
def test_invalid_entry_is_rejected_with_reason(spec: dict[str, Any], reason: str) -> None:
    view = made(entry(**spec))
    assert reason in view.errors()["ServiceEntry default/out"]
    assert not view.snapshot().services


def test_rejected_update_keeps_last_valid_entry() -> None:
    view = made(entry(**static("192.0.2.7")))
    view.upsert(entry(**static("nowhere")))
    assert view.errors()
    assert only_service(view).endpoints[0].address == "192.0.2.7"


def test_unsupported_field_is_reported() -> None:
    view = made(entry(subjectAltNames=["spiffe://x"], **static("192.0.2.7")))
    assert "not verified" in view.errors()["ServiceEntry default/out"]
    assert only_service(view)


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_every_api_version_is_accepted(version: str) -> None:
    obj = {**entry(**static("192.0.2.7")), "apiVersion": f"networking.istio.io/{version}"}
    assert only_service(made(obj))


def dynamic(**spec: Any) -> dict[str, Any]:
    return {"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS", **spec}


def allocated(*pairs: tuple[str, str]) -> Object:
    return {"addresses": [{"value": value, "host": host} for value, host in pairs]}


def test_names_of_dynamic_hosts_are_left_to_the_waypoint() -> None:
    ports = [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}, TLS]
    view = made(entry(ports=ports, **dynamic()))
    service = only_service(view)
    assert service.dynamic_ports == {"http": 8080, "tls": 443}
    assert service.endpoints == ()
    assert not view.errors()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"ports": [SQL]}, "protocols HTTP, HTTP2, GRPC, HTTPS or TLS"),
        ({"endpoints": [{"address": "192.0.2.7"}]}, "there are endpoints or a selector"),
        ({"location": "MESH_INTERNAL"}, "MESH_EXTERNAL"),
    ],
)
def test_invalid_dynamic_entry_is_rejected(spec: dict[str, Any], reason: str) -> None:
    view = made(entry(**dynamic(**spec)))
    assert reason in view.errors()["ServiceEntry default/out"]
    assert not view.snapshot().services


def test_allocated_addresses_belong_to_one_host_each() -> None:
    hosts = ["a.example.com", "b.example.com"]
    obj = entry(hosts=hosts, **static("192.0.2.7"))
    obj["status"] = allocated(
        ("240.240.0.1", "a.example.com"),
        ("2001:2::1", "A.example.com."),
        ("240.240.0.2", "b.example.com"),
        ("240.240.0.3", "other.example.com"),
    )
    mesh = state(made(obj))
    assert set(addresses(mesh, "a.example.com") or ()) == {"240.240.0.1", "2001:2::1"}
    assert addresses(mesh, "b.example.com") == ("240.240.0.2",)
    assert mesh.service_at("240.240.0.3") is None


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ({"addresses": ["192.0.2.99"]}, {}),
        ({}, {"networking.istio.io/enable-autoallocate-ip": "false"}),
    ],
)
def test_allocated_addresses_do_not_apply_beside_others_or_if_opted_out(
    spec: dict[str, Any], labels: dict[str, str]
) -> None:
    obj = entry(**static("192.0.2.7", **spec))
    obj["status"] = allocated(("240.240.0.1", "api.example.com"))
    obj["metadata"]["labels"] = labels
    assert only_service(made(obj)).vips == tuple(spec.get("addresses", ()))


def test_allocated_address_cannot_be_claimed_from_another_namespace() -> None:
    owner = entry("owner", "shop", **static("192.0.2.7"))
    owner["status"] = allocated(("240.240.0.1", "api.example.com"))
    thief = entry("a-thief", "evil", **static("192.0.2.66", addresses=["240.240.0.1"]))
    for objs in ((owner, thief), (thief, owner)):
        view = made(*objs)
        mesh = state(view)
        found = mesh.service_at("240.240.0.1")
        assert found is not None
        assert found.namespace == "shop"
        reason = view.errors()["ServiceEntry evil/a-thief"]
        assert "address 240.240.0.1 is allocated to ServiceEntry shop/owner" in reason
        view.delete("ServiceEntry", "shop", "owner")
        view.drain()
        assert "ServiceEntry evil/a-thief" not in view.errors()


def test_address_outside_the_ranges_is_not_allocated_by_a_status() -> None:
    tenant = entry("tenant", "evil", **static("192.0.2.66"))
    tenant["status"] = allocated(("192.0.2.99", "api.example.com"))
    view = made(tenant, entry("own", "shop", **static("192.0.2.7", addresses=["192.0.2.99"])))
    state(view)
    assert not view.errors()


def test_status_with_too_many_addresses_rejects_the_entry() -> None:
    obj = entry(**static("192.0.2.7"))
    pairs = [(f"240.240.{i // 250}.{i % 250}", "api.example.com") for i in range(600)]
    obj["status"] = allocated(*pairs)
    view = made(obj)
    assert "addresses" in view.errors()["ServiceEntry default/out"]
    assert not view.snapshot().services


def test_addresses_from_status_are_used() -> None:
    obj = {
        **entry(**static("192.0.2.7")),
        "status": {"addresses": [{"value": "240.240.0.9", "host": "api.example.com"}]},
    }
    assert only_service(made(obj)).vips == ("240.240.0.9",)


# Limits


def _addresses_of(count: int) -> list[str]:
    return [f"192.0.{at >> 8}.{at & 255}" for at in range(count)]


def _hosts(count: int) -> list[str]:
    return [f"h{at}.example.com" for at in range(count)]


def test_hosts_of_an_entry_share_one_tuple_of_endpoints() -> None:
    obj = entry(**static(*_addresses_of(100), hosts=_hosts(100)))
    view = made(obj)
    assert len({id(each.endpoints) for each in view.snapshot().services}) == 1
    view.upsert(entry(**static(*_addresses_of(100), hosts=_hosts(101))))
    services = view.snapshot().services
    assert len(services) == 101
    assert len({id(each.endpoints) for each in services}) == 1


def test_entry_beyond_its_limit_is_rejected_alone_until_it_fits() -> None:
    large = entry("large", **static(*_addresses_of(4096), hosts=_hosts(256)))
    view = made(large, entry("small", **static("192.0.2.7")))
    assert only_service(view).name == "api.example.com"
    assert "rejected: hosts x addresses x ports" in view.errors()["ServiceEntry default/large"]
    view.upsert(entry("large", **static(*_addresses_of(4), hosts=_hosts(256))))
    assert len(view.snapshot().services) == 257
    assert not view.errors()


def test_pods_that_a_selector_adds_count_towards_the_limit() -> None:
    labels = {"app": "db"}
    pods = [objects.pod(f"db-{at}", f"10.0.1.{at}", labels=labels) for at in range(100)]
    selector = {"labels": labels}
    obj = entry(resolution="STATIC", hosts=_hosts(256), workloadSelector=selector)
    view = made(obj, *pods)
    assert not view.snapshot().services
    assert "rejected" in view.errors()["ServiceEntry default/out"]
    for at in range(60):
        view.delete("Pod", "default", f"db-{at}")
    assert len(view.snapshot().services) == 256
    assert not view.errors()


def test_namespace_cannot_exceed_its_share_of_destinations() -> None:
    def full(at: int, namespace: str = "default") -> Object:
        hosts = [f"{namespace}-{at}.example.com"]
        ports = [{"number": 1000 + each, "name": f"p{each}"} for each in range(4)]
        return entry(f"e{at}", namespace, **static(*_addresses_of(4000), hosts=hosts, ports=ports))

    view = made(*(full(at) for at in range(6)), full(0, "other"))
    names = {each.name for each in view.snapshot().services}
    assert names == {f"default-{at}.example.com" for at in range(4)} | {"other-0.example.com"}
    assert view.errors().keys() == {"ServiceEntry default/e4", "ServiceEntry default/e5"}
    view.delete("ServiceEntry", "default", "e0")
    names = {each.name for each in view.snapshot().services}
    assert "default-4.example.com" in names
    assert view.errors().keys() == {"ServiceEntry default/e5"}


def test_names_of_a_rejected_entry_are_not_resolved() -> None:
    ports = [{"number": 1000 + at, "name": f"p{at}"} for at in range(256)]
    view = made(entry(resolution="DNS", hosts=_hosts(100), ports=ports))
    view.drain()
    assert view.entries.names() == set()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (static(*_addresses_of(4097)), "at most 4096"),
        (static("192.0.2.7", exportTo=[f"n{at}" for at in range(257)]), "at most 256 namespaces"),
    ],
)
def test_list_beyond_its_limit_is_rejected(spec: dict[str, Any], reason: str) -> None:
    view = made(entry(**spec))
    assert not view.snapshot().services
    assert reason in view.errors()["ServiceEntry default/out"]


# Names and addresses of the cluster

NODE_POD = objects.pod("kube-proxy", "172.18.0.3", hostNetwork=True, node="n2")
ON_NODE = objects.pod("app", "10.0.0.9", node="n4")
ON_NODE["status"] |= {"hostIP": "172.18.0.4", "hostIPs": [{"ip": "172.18.0.4"}, {"ip": "fd12::4"}]}
WEB = objects.service("web", "10.96.0.1", "fd96::1", namespace="mesh")


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("172.18.0.2", objects.node("n1", "172.18.0.2")),
        ("172.18.0.3", NODE_POD),
        ("172.18.0.4", ON_NODE),
        ("fd12::4", ON_NODE),
        ("10.0.0.9", ON_NODE),
        ("10.96.0.1", WEB),
        ("::ffff:10.96.0.1", WEB),
        ("fd96:0::1", WEB),
    ],
)
@pytest.mark.parametrize("resolution", ["STATIC", "NONE"])
@pytest.mark.parametrize("entry_first", [True, False])
def test_address_of_the_cluster_is_rejected_in_either_order(
    address: str, owner: Object, resolution: str, entry_first: bool
) -> None:
    spec = {"addresses": [address]} if resolution == "NONE" else static("192.0.2.7")
    taking = entry(**{**spec, "resolution": resolution, "addresses": [address]})
    view = made(*((taking, owner) if entry_first else (owner, taking)))
    services = {each.key for each in view.snapshot().services}
    assert "default/api.example.com" not in services
    assert "belongs to" in view.errors()["ServiceEntry default/out"]
    meta = owner["metadata"]
    view.delete(owner["kind"], meta.get("namespace", ""), meta["name"])
    assert only_service(view).name == "api.example.com"
    assert not view.errors()
    view.upsert(owner)
    assert "default/api.example.com" not in {each.key for each in view.snapshot().services}


def test_entry_that_is_accepted_is_removed_when_a_node_appears() -> None:
    view = made(entry(**static("192.0.2.7", addresses=["172.18.0.2"])))
    assert view.drain().services
    view.upsert(objects.node("n1", "172.18.0.2"))
    assert view.drain().removed_services == ("default/api.example.com",)


@pytest.mark.parametrize(
    "host",
    [
        *("web.mesh", "web.mesh.svc", "web.mesh.svc.cluster", "WEB.mesh.svc."),
        *("db-0.web.mesh", "_http._tcp.web.mesh.svc", "*.web.mesh", "*.mesh.svc", "*.svc.cluster"),
    ],
)
@pytest.mark.parametrize("entry_first", [True, False])
def test_short_name_of_a_service_is_rejected_in_either_order(host: str, entry_first: bool) -> None:
    taking = entry("evil", "tenant", **static("192.0.2.66", hosts=["ok.example.com", host]))
    view = made(*((taking, WEB) if entry_first else (WEB, taking)))
    assert only_service(view).key == "mesh/web"
    assert "name of Service mesh/web" in view.errors()["ServiceEntry tenant/evil"]
    mesh = state(view)
    for name in ("web.mesh", "web.mesh.svc", "web.mesh.front.svc.cluster.local"):
        found = addresses(mesh, name, "front")
        assert found is None or found == ("10.96.0.1", "fd96::1")
    view.delete("Service", "mesh", "web")
    assert len(view.snapshot().services) == 2
    assert not view.errors()


@pytest.mark.parametrize(
    "host", ["mesh.example.com", "web.mesh.example.com", "web.meshes", "*.a.b"]
)
def test_host_that_no_search_list_makes_of_a_service_is_accepted(host: str) -> None:
    view = made(WEB, entry(**static("192.0.2.7", hosts=[host])))
    assert f"default/{host}" in {each.key for each in view.snapshot().services}
    assert not view.errors()


def test_wildcard_does_not_cover_absent_names_below_a_service() -> None:
    view = ClusterView("cluster.local", "Kubernetes", "prod.example.com")
    view.upsert(WEB)
    view.upsert(entry(**static("192.0.2.66", hosts=["*.example.com"])))
    mesh = state(view)
    found = lookup(mesh, "mesh", "db-0.web.mesh.svc.prod.example.com", "prod.example.com")
    assert found is not None
    assert not found.exists
