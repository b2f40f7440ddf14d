# SPDX-License-Identifier: Apache-2.0
"""Virtual addresses of ServiceEntries: stable, unique, and in Istio's ranges."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.kube.objects.virtual_addresses import (
    IPV4_RANGE,
    IPV6_RANGE,
    MAX_NAMESPACE_HOSTS,
    plan_addresses,
    with_addresses,
)

Object = dict[str, Any]
DOMAIN = "cluster.local"


def entry(name: str = "api", *hosts: str, age: str = "1", **spec: Any) -> Object:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": age},
        "spec": {
            "hosts": list(hosts) or [f"{name}.example.com"],
            "resolution": "DNS",
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
            **spec,
        },
    }


def plan(*objects: Object) -> tuple[list[Object], list[str]]:
    """The objects as they are after the allocation."""
    changed, problems = plan_addresses(objects, DOMAIN, lambda _: False)
    new = {each.obj["metadata"]["name"]: each for each in changed}
    return [
        with_addresses(obj, new[obj["metadata"]["name"]].addresses)
        if obj["metadata"]["name"] in new
        else obj
        for obj in objects
    ], problems


def addresses(obj: Object, host: str = "") -> list[str]:
    found = obj.get("status", {}).get("addresses", [])
    return [each["value"] for each in found if not host or each["host"] == host]


def test_each_host_gets_one_address_of_each_family() -> None:
    (made,), problems = plan(
        entry(
            "api",
            "a.example.com",
            "*.example.com",
            resolution="STATIC",
            endpoints=[{"address": "192.0.2.1"}],
        )
    )
    assert problems == []
    for host in ("a.example.com", "*.example.com"):
        four, six = map(ip_address, addresses(made, host))
        assert four in IPV4_RANGE
        assert six in IPV6_RANGE
    assert len(set(addresses(made))) == 4


def test_allocation_is_final() -> None:
    made, _ = plan(entry("api"), entry("other"))
    again, _ = plan(*made)
    assert again == made
    assert plan_addresses(made, DOMAIN, lambda _: False) == ([], [])


def test_entry_that_is_applied_again_gets_the_same_addresses() -> None:
    (first, _), _ = plan(entry("api"), entry("other"))
    (second,), _ = plan(entry("api", age="9"))
    assert addresses(first) == addresses(second)


def test_new_entry_never_takes_an_address_in_use() -> None:
    (made,), _ = plan(entry("api"))
    taken = with_addresses(
        entry("older", age="0"),
        [{**each, "host": "older.example.com"} for each in made["status"]["addresses"]],
    )
    (_, new), _ = plan(taken, entry("api"))
    assert len(addresses(new)) == 2
    assert not set(addresses(new)) & set(addresses(taken))


def test_of_two_entries_with_one_address_the_older_keeps_it() -> None:
    (made,), _ = plan(entry("api", age="5"))
    copy = with_addresses(
        entry("copy", age="7"),
        [{**each, "host": "copy.example.com"} for each in made["status"]["addresses"]],
    )
    (old, new), _ = plan(made, copy)
    assert addresses(old) == addresses(made)
    assert not set(addresses(new)) & set(addresses(old))


def test_explicit_addresses_are_not_allocated_and_do_not_displace_allocated_ones() -> None:
    (made,), _ = plan(entry("api", age="5"))
    explicit = entry("explicit", age="1", addresses=addresses(made))
    assert plan_addresses([made, explicit], DOMAIN, lambda _: False) == ([], [])
    (new, _), _ = plan(entry("api", age="5"), explicit)
    assert not set(addresses(new)) & set(addresses(made))


def test_addresses_of_the_cluster_are_not_allocated() -> None:
    (made,), _ = plan(entry("api"))
    changed, _ = plan_addresses([entry("api")], DOMAIN, lambda ip: ip in addresses(made))
    assert not {each["value"] for each in changed[0].addresses} & set(addresses(made))


def test_entries_without_use_for_an_address_get_none() -> None:
    opted_out = entry("out")
    opted_out["metadata"]["labels"] = {"networking.istio.io/enable-autoallocate-ip": "false"}
    others = (
        opted_out,
        entry("none", resolution="NONE", addresses=["192.0.2.0/24"]),
        entry("udp", ports=[{"number": 53, "name": "dns", "protocol": "UDP"}]),
        entry("invalid", "not a name"),
    )
    assert plan_addresses(others, DOMAIN, lambda _: False) == ([], [])


def test_host_that_was_added_later_gets_addresses_and_others_keep_theirs() -> None:
    (made,), _ = plan(entry("api", "a.example.com"))
    grown = {**made, "spec": {**made["spec"], "hosts": ["b.example.com", "a.example.com"]}}
    (after,), _ = plan(grown)
    assert addresses(after, "a.example.com") == addresses(made)
    assert len(addresses(after, "b.example.com")) == 2


def test_one_namespace_does_not_exhaust_the_range() -> None:
    many = [
        entry(f"e{number:02}", *(f"h{host}.e{number}.example.com" for host in range(256)))
        for number in range(MAX_NAMESPACE_HOSTS // 256 + 1)
    ]
    made, problems = plan(*many)
    assert len(problems) == 256
    assert "set spec.addresses" in problems[0]
    assert addresses(made[-1]) == []


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=40))
def test_addresses_are_unique_and_never_change_while_the_host_exists(
    steps: list[tuple[int, int]],
) -> None:
    stored: dict[str, Object] = {}
    for time, (number, count) in enumerate(steps):
        name = f"e{number}"
        if count == 0:
            stored.pop(name, None)
        else:
            new = entry(name, *(f"h{i}.{name}.example.com" for i in range(count)), age=f"{time:03}")
            if name in stored:
                new["status"] = stored[name]["status"]
                new["metadata"] = stored[name]["metadata"]
            stored[name] = new
        before = {
            (each["host"], each["value"])
            for obj in stored.values()
            for each in obj.get("status", {}).get("addresses", [])
            if each["host"] in obj["spec"]["hosts"]
        }
        made, _ = plan(*stored.values())
        stored = {obj["metadata"]["name"]: obj for obj in made}
        after = [
            (each["host"], each["value"]) for obj in made for each in obj["status"]["addresses"]
        ]
        assert before <= set(after)
        assert len({value for _, value in after}) == len(after)
