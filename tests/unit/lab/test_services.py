# SPDX-License-Identifier: Apache-2.0
"""The lab's services: virtual addresses, EndpointSlices, kube-proxy rules and DNS."""

from __future__ import annotations

from typing import Any

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest

from ztunnel.lab.cluster import kube_proxy, load_balancer, services
from ztunnel.lab.cluster.admission import admit, terminating
from ztunnel.lab.cluster.dns_zone import Zone, answer, build_zone
from ztunnel.lab.cluster.external_addresses import NODE_PORTS
from ztunnel.lab.network import addresses
from ztunnel.lab.objects import Key, Object, key_of

NODE1, NODE2 = addresses.make_nodes(2)


def service(name: str = "web", **spec: Any) -> Object:
    defaults: Object = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**defaults, **spec},
    }


def pod(number: int, *, ready: bool = True, app: str = "web", port: int = 8080) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{app}-{number}",
            "namespace": "default",
            "uid": f"uid{number}",
            "labels": {"app": app},
        },
        "spec": {
            "nodeName": "node1",
            "containers": [
                {"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": port}]}
            ],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": f"10.244.1.{number}"}, {"ip": f"fd00:10:244:1::{number}"}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def planned(*objects: Object) -> dict[Key, Object]:
    found = {key_of(obj): obj for obj in objects}
    found |= {key_of(obj): obj for obj in services.plan_services(found)}
    return found | {key_of(obj): obj for obj in services.plan_slices(found)}


def endpoints(objects: dict[Key, Object], name: str) -> dict[str, bool]:
    endpoint_slice = objects[Key("EndpointSlice", "default", name)]
    return {e["addresses"][0]: e["conditions"]["ready"] for e in endpoint_slice["endpoints"]}


def test_service_gets_a_stable_address_of_each_family() -> None:
    first = services.plan_services(planned(service()))[0]["spec"]
    assert [addresses.is_ipv6(ip) for ip in first["clusterIPs"]] == [False, True]
    assert first == services.plan_services(planned(service(), service("other")))[-1]["spec"]


def test_colliding_service_gets_the_next_free_address() -> None:
    first = addresses.service_addresses("default/web", ())
    assert addresses.service_addresses("default/web", first) != first


def test_requested_address_and_single_stack_are_respected() -> None:
    fixed = planned(service(clusterIP="10.96.7.7"))[Key("Service", "default", "web")]["spec"]
    assert fixed["clusterIPs"] == ["10.96.7.7"]
    six = planned(service(ipFamilies=["IPv6"]))[Key("Service", "default", "web")]["spec"]
    assert [addresses.is_ipv6(ip) for ip in six["clusterIPs"]] == [True]


def test_slices_contain_selected_pods_of_each_family_with_readiness() -> None:
    objects = planned(service(), pod(2), pod(3, ready=False), pod(4, app="other"))
    assert endpoints(objects, "web-ipv4") == {"10.244.1.2": True, "10.244.1.3": False}
    assert endpoints(objects, "web-ipv6") == {
        "fd00:10:244:1::2": True,
        "fd00:10:244:1::3": False,
    }


def test_terminating_pod_serves_but_is_not_ready() -> None:
    objects = planned(service(), terminating(pod(1), "2026-01-01T00:00:00Z"))
    found = [
        entry["conditions"]
        for key, obj in objects.items()
        if key.kind == "EndpointSlice"
        for entry in obj["endpoints"]
    ]
    assert found == [{"ready": False, "serving": True, "terminating": True}] * 2


def test_named_target_port_is_resolved_per_pod() -> None:
    named = service(ports=[{"name": "w", "port": 80, "targetPort": "http"}])
    objects = planned(named, pod(2, port=1000), pod(3, port=2000))
    ports = {
        key.name: obj["ports"][0]["port"]
        for key, obj in objects.items()
        if key.kind == "EndpointSlice" and obj["addressType"] == "IPv4"
    }
    assert ports == {"web-ipv4": 1000, "web-ipv4-1": 2000}


def test_slices_of_a_deleted_service_are_stale_but_manual_ones_are_not() -> None:
    objects = planned(service(), pod(2))
    del objects[Key("Service", "default", "web")]
    objects[Key("EndpointSlice", "default", "mine")] = {
        "kind": "EndpointSlice",
        "metadata": {"name": "mine", "namespace": "default"},
    }
    stale = services.stale_slices(objects, services.plan_slices(objects))
    assert {key.name for key in stale} == {"web-ipv4", "web-ipv6"}


def test_rules_select_only_ready_endpoints() -> None:
    objects = planned(service(clusterIP="10.96.7.7"), pod(2), pod(3), pod(4, ready=False))
    script = kube_proxy.render(list(kube_proxy.frontends(objects)), NODE1)
    assert "numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.1.3 . 8080 }" in script
    assert "10.244.1.4" not in script
    assert "10.96.7.7 . tcp . 80 : goto svc0" in script


def test_headless_services_and_services_without_endpoints_have_no_rules() -> None:
    objects = planned(service(clusterIP="None"), service("unselected"), pod(2))
    assert not list(kube_proxy.frontends(objects))


def balanced(**spec: Any) -> Object:
    return service(type="LoadBalancer", externalTrafficPolicy="Local", **spec)


def test_load_balancer_gets_addresses_and_node_ports_that_stay() -> None:
    first = planned(balanced())[Key("Service", "default", "web")]
    ingress = [entry["ip"] for entry in first["status"]["loadBalancer"]["ingress"]]
    assert [ip.startswith(("172.30.1.", "fd00:30:1::")) for ip in ingress] == [True, True]
    port = first["spec"]["ports"][0]["nodePort"]
    assert port in NODE_PORTS
    again = admit(balanced(), first, lambda: "uid", "now")
    assert again["status"] == first["status"]
    assert again["spec"]["ports"][0]["nodePort"] == port


def test_requested_node_port_and_balancer_address_are_respected() -> None:
    port = {"port": 80, "targetPort": 8080, "nodePort": 31000}
    wanted = balanced(ports=[port], loadBalancerIP="172.30.1.77")
    found = planned(wanted, service("other", type="NodePort"))
    web = found[Key("Service", "default", "web")]
    assert web["spec"]["ports"][0]["nodePort"] == 31000
    assert web["status"]["loadBalancer"]["ingress"] == [{"ip": "172.30.1.77", "ipMode": "VIP"}]
    assert found[Key("Service", "default", "other")]["spec"]["ports"][0]["nodePort"] in NODE_PORTS


def test_local_policy_uses_the_pods_of_the_node_and_preserves_the_client() -> None:
    served = list(kube_proxy.frontends(planned(balanced(), pod(2))))
    external = [frontend for frontend in served if frontend.external]
    assert len(external) == 4  # load balancer and node port, of both families
    node1, node2 = kube_proxy.render(external, NODE1), kube_proxy.render(external, NODE2)
    assert "dnat ip to" in node1
    assert "meta mark set" not in node1
    assert "dnat" not in node2.partition("chain resolve")[0]


def test_cluster_policy_uses_all_pods_and_hides_the_client() -> None:
    served = list(kube_proxy.frontends(planned(service(type="NodePort"), pod(2))))
    external = [frontend for frontend in served if frontend.external]
    script = kube_proxy.render(external, NODE2)
    assert "meta mark set 0x4000" in script
    assert "10.244.1.2 . 8080" in script


def test_terminating_pod_serves_until_another_one_is_ready() -> None:
    old = terminating(pod(2), "2026-01-01T00:00:00Z")
    for others, expected in (((), "10.244.1.2"), ((pod(3),), "10.244.1.3")):
        served = kube_proxy.frontends(planned(balanced(), old, *others))
        used = {backend.address for f in served if not f.ipv6 for backend in f.used}
        assert used == {expected}


def test_node_serves_by_its_terminating_pod_until_the_load_balancer_avoids_it() -> None:
    old = terminating(pod(2), "2026-01-01T00:00:00Z")
    new = pod(3)
    new["spec"] = {**new["spec"], "nodeName": "node2"}
    served = list(kube_proxy.frontends(planned(balanced(), old, new)))
    external = [frontend for frontend in served if frontend.external]
    assert "10.244.1.2 . 8080" in kube_proxy.render(external, NODE1)
    assert "map { 0 : 1002 }" in load_balancer.render(external, (NODE1, NODE2))


def test_host_port_reaches_the_pod_of_the_node() -> None:
    bound = pod(2)
    bound["spec"]["containers"][0]["ports"] = [{"containerPort": 8080, "hostPort": 80}]
    served = list(kube_proxy.frontends(planned(bound)))
    assert "tcp . 80 : goto" in kube_proxy.render(served, NODE1)
    assert "10.244.1.2 . 8080" in kube_proxy.render(served, NODE1)
    assert "10.244.1.2" not in kube_proxy.render(served, NODE2)


def test_load_balancer_uses_only_nodes_with_endpoints() -> None:
    objects = planned(balanced(loadBalancerIP="172.30.1.7"), pod(2))
    script = load_balancer.render(list(kube_proxy.frontends(objects)), (NODE1, NODE2))
    assert "ip daddr 172.30.1.7 tcp dport 80 goto balancer0" in script
    assert "numgen inc mod 1 map { 0 : 1001 }" in script


def resolve(zone: Zone, name: str, kind: str = "A") -> tuple[str, set[str]]:
    reply = answer(dns.message.make_query(name, kind), zone)
    return dns.rcode.to_text(reply.rcode()), {str(r) for rrset in reply.answer for r in rrset}


@pytest.fixture
def zone() -> Zone:
    return build_zone(
        planned(
            service(clusterIPs=["10.96.7.7", "fd00:10:96::707"], clusterIP="10.96.7.7"),
            service("bare", clusterIP="None", selector={"app": "web"}),
            service("outside", type="ExternalName", externalName="example.com", selector=None),
            pod(2),
            pod(3),
            pod(4, ready=False),
        )
    )


def test_service_name_resolves_to_both_families(zone: Zone) -> None:
    assert resolve(zone, "web.default.svc.cluster.local") == ("NOERROR", {"10.96.7.7"})
    assert resolve(zone, "WEB.default.svc.cluster.local", "AAAA")[1] == {"fd00:10:96::707"}


def test_headless_service_resolves_to_its_ready_pods(zone: Zone) -> None:
    found = resolve(zone, "bare.default.svc.cluster.local")
    assert found == ("NOERROR", {"10.244.1.2", "10.244.1.3"})


def test_external_name_is_an_alias(zone: Zone) -> None:
    assert resolve(zone, "outside.default.svc.cluster.local")[1] == {"example.com."}


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("nothing.default.svc.cluster.local", "A", "NXDOMAIN"),
        (
            "web.default.svc.cluster.local",
            "TXT",
            "NOERROR",
        ),  # the name has no TXT record
        ("default.svc.cluster.local", "A", "NOERROR"),  # an empty non-terminal
        ("example.com", "A", "REFUSED"),
        ("10.1.96.10.in-addr.arpa", "PTR", "REFUSED"),
    ],
)
def test_negative_responses_have_the_right_code(
    zone: Zone, name: str, kind: str, rcode: str
) -> None:
    assert resolve(zone, name, kind) == (rcode, set())


def test_negative_responses_have_the_soa_for_caching(zone: Zone) -> None:
    query = dns.message.make_query("nothing.default.svc.cluster.local", "A")
    reply = answer(query, zone)
    assert [rrset.rdtype.name for rrset in reply.authority] == ["SOA"]
    assert reply.flags & dns.flags.AA


def test_other_opcodes_are_not_implemented(zone: Zone) -> None:
    query = dns.message.make_query("web.default.svc.cluster.local", "A")
    query.set_opcode(dns.opcode.NOTIFY)
    assert answer(query, zone).rcode() == dns.rcode.NOTIMP


def test_dns_answers_names_outside_the_cluster_from_a_config_map() -> None:
    hosts = """
    192.0.2.1  api.example.com www.example.com  # a comment
    2001:db8::1  api.example.com
    192.0.2.2  *.example.org
    """
    config_map: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "external-hosts", "namespace": "kube-system"},
        "data": {"hosts": hosts},
    }
    zone = build_zone({key_of(config_map): config_map})

    def resolve(name: str, kind: str = "A") -> list[str]:
        reply = answer(dns.message.make_query(name, kind), zone)
        assert not reply.answer or reply.rcode() == dns.rcode.NOERROR
        return [each.to_text() for rrset in reply.answer for each in rrset]

    assert resolve("API.example.com") == ["192.0.2.1"]
    assert resolve("api.example.com", "AAAA") == ["2001:db8::1"]
    assert resolve("www.example.com", "AAAA") == []
    assert resolve("a.b.example.org") == ["192.0.2.2"]
    assert resolve("example.org") == []
    assert answer(dns.message.make_query("example.org", "A"), zone).rcode() == dns.rcode.REFUSED
