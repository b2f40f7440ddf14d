# SPDX-License-Identifier: Apache-2.0
"""Allocates virtual addresses for the hosts of ServiceEntries that have none. Pure.

    spec.addresses            used as they are; never allocated to another host afterwards
    status.addresses          kept; of two entries with one address, the older one keeps it
    neither                   the first free address after a hash of namespace, entry and host

The ranges, the status and the label are those of Istio's ip-autoallocate controller. The hash makes
an entry that is deleted and applied again get the same address, unless another has it by then: an
application that still has the old answer does not connect to another host.

An author of ServiceEntries must not take over the connections to hosts of other namespaces: nodes
reject an entry whose spec has an address that is allocated to a host of another namespace.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from ztunnel.kube.objects.fields import Object, TranslateError, key_of
from ztunnel.kube.objects.service_entries import Entry, read_entry
from ztunnel.mesh.address import family

# istio/istio, pilot/pkg/features: PILOT_IP_AUTOALLOCATE_IPV4_PREFIX and -IPV6_PREFIX
IPV4_RANGE = IPv4Network("240.240.0.0/16")
IPV6_RANGE = IPv6Network("2001:2::/48")
MAX_NAMESPACE_HOSTS = 4096  # with allocated addresses: one namespace does not exhaust the range
_MAX_PROBES = 4096  # addresses that are tried for a host
_V6_HOSTS = 1 << 64  # of the range, this many addresses are in use

Address = dict[str, str]  # an item of status.addresses: `value` and `host`


@dataclass(frozen=True)
class Allocation:
    """The addresses that an object gets in its status, all hosts together."""

    obj: Object
    addresses: list[Address]


def plan_addresses(
    objects: Iterable[Object], cluster_domain: str, is_claimed: Callable[[str], bool]
) -> tuple[list[Allocation], list[str]]:
    """Return the ServiceEntries whose status.addresses change, and the problems.

    Invalid entries get none. `is_claimed`: whether an address belongs to the cluster. The cost is
    proportional to the number of hosts.
    """
    entries = list(_parsed(objects, cluster_domain))
    used: set[str] = set()
    kept = [(obj, entry, _kept(entry, used)) for obj, entry in entries if entry.wants_addresses]
    used.update(vip for _, entry in entries for vip in entry.vips)
    changed, problems = [], []
    hosts: Counter[str] = Counter()
    for obj, entry, found in kept:
        for host in entry.hosts:
            hosts[entry.namespace] += 1
            if hosts[entry.namespace] > MAX_NAMESPACE_HOSTS:
                problems.append(_limit_problem(entry, host))
            else:
                problems += _complete(entry, host, found.setdefault(host, []), used, is_claimed)
        wanted = [
            {"value": vip, "host": host} for host in entry.hosts for vip in found.get(host, [])
        ]
        if wanted != _current(obj):
            changed.append(Allocation(obj, wanted))
    return changed, problems


def is_allocatable(ip: str) -> bool:
    """Whether an address (canonical) is in one of the ranges."""
    return ip_address(ip) in (IPV6_RANGE if ":" in ip else IPV4_RANGE)


def with_addresses(obj: Object, addresses: list[Address]) -> Object:
    """Return a ServiceEntry with these addresses in its status."""
    return {**obj, "status": {**(obj.get("status") or {}), "addresses": addresses}}


def _parsed(objects: Iterable[Object], cluster_domain: str) -> Iterator[tuple[Object, Entry]]:
    """The valid entries, oldest first."""
    for obj in sorted(objects, key=_age):
        try:
            yield obj, read_entry(obj, cluster_domain)
        except TranslateError:
            continue


def _age(obj: Object) -> tuple[str, str, str]:
    key = key_of(obj)
    return str(obj["metadata"].get("creationTimestamp") or ""), key.namespace, key.name


def _kept(entry: Entry, used: set[str]) -> dict[str, list[str]]:
    """The addresses of the status that no other entry and no other host has; marks them as used."""
    found: dict[str, list[str]] = {}
    for host, vips in entry.host_vips.items():
        for vip in vips:
            families = {family(other) for other in found.get(host, [])}
            if vip not in used and family(vip) not in families:
                used.add(vip)
                found.setdefault(host, []).append(vip)
    return found


def _complete(
    entry: Entry,
    host: str,
    found: list[str],
    used: set[str],
    is_claimed: Callable[[str], bool],
) -> Iterator[str]:
    """Add the address of each family that a host lacks; yields problems."""
    families = {family(vip) for vip in found}
    seed = f"{entry.namespace}/{entry.name}/{host}"
    for version, candidates in ((4, _ipv4_candidates), (6, _ipv6_candidates)):
        if version in families:
            continue
        free = (vip for vip in candidates(seed) if vip not in used and not is_claimed(vip))
        vip = next(free, "")
        if not vip:
            yield f"ServiceEntry {entry.namespace}/{entry.name}: no free IPv{version} address"
            continue
        used.add(vip)
        found.append(vip)


def _ipv4_candidates(seed: str) -> Iterator[str]:
    size = IPV4_RANGE.num_addresses - 2  # without the first and the last address
    start = _hash(seed) % size
    first = int(IPV4_RANGE.network_address) + 1
    for step in range(min(_MAX_PROBES, size)):
        yield str(ip_address(first + (start + step) % size))


def _ipv6_candidates(seed: str) -> Iterator[str]:
    first = int(IPV6_RANGE.network_address) + 1
    for step in range(_MAX_PROBES):
        yield str(ip_address(first + (_hash(seed) + step) % (_V6_HOSTS - 1)))


def _hash(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")


def _current(obj: Object) -> list[Address]:
    """The addresses of the status, as far as they have the form of ours."""
    status = obj.get("status")
    found = status.get("addresses") if isinstance(status, dict) else None
    return found if isinstance(found, list) else []


def _limit_problem(entry: Entry, host: str) -> str:
    return (
        f"ServiceEntry {entry.namespace}/{entry.name}: no virtual address for {host}: the hosts of "
        f"its namespace are more than {MAX_NAMESPACE_HOSTS}; hint: set spec.addresses"
    )
