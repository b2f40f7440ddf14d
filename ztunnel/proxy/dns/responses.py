# SPDX-License-Identifier: Apache-2.0
"""What a pod is shown of DNS responses, and which of them are remembered.

    pod of an application   the response as it is
    pod of a gateway        names that its Envoy resolves (DYNAMIC_DNS): without addresses of the
                            cluster or node, so that a name cannot lead into them

The names and addresses are remembered for the access log (`recent_answers`).
"""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.dns.addresses import answer_addresses, without_addresses
from ztunnel.mesh.address import is_special
from ztunnel.mesh.dns_names import DnsAnswer, lookup
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.context import Context
from ztunnel.proxy.local_pod import Pod

Lookup = Callable[[str], DnsAnswer | None]


def name_lookup(context: Context, pod: Pod) -> Lookup | None:
    """The function that resolves names of the mesh for a pod; None before the first snapshot."""
    mesh, workload = context.mesh, _workload(context, pod)
    if mesh is None or workload is None:
        return None
    if workload.gateway:
        return _gateway_lookup(mesh, workload)
    return lambda name: lookup(mesh, workload.namespace, name)


def shown(context: Context, pod: Pod, name: str, wire: bytes) -> bytes | None:
    """What the pod gets of a name server's response to a query for `name`; None: no response."""
    mesh, workload = context.mesh, _workload(context, pod)
    if mesh is None or workload is None:
        return None
    if workload.gateway and (not name or mesh.resolves_name(workload.gateway, name)):
        ports = mesh.resolved_ports(workload.gateway) or {0}

        def is_inside(ip: str) -> bool:
            targets = [SocketAddress(ip, port) for port in ports]
            return is_special(ip) or any(
                mesh.is_of_cluster(each, workload.namespace) for each in targets
            )

        filtered, dropped = without_addresses(wire, is_inside)
        context.tracker.counters.dns.count_dropped_addresses(dropped)
        return filtered
    return wire


def must_be_shown(context: Context, pod: Pod) -> bool:
    """Whether the pod may get responses only after `shown`: it may not use a tunnel to a server."""
    mesh, workload = context.mesh, _workload(context, pod)
    return (
        mesh is not None
        and workload is not None
        and bool(workload.gateway and mesh.resolved_ports(workload.gateway))
    )


def remember(context: Context, pod: Pod, name: str, wire: bytes) -> None:
    """Remember the addresses of a response that the pod gets."""
    if not name:
        return
    for address in answer_addresses(wire):
        if context.recent_answers.record(pod.netns_cookie, address, name):
            context.tracker.counters.dns.count_evicted_answer()


def _gateway_lookup(mesh: MeshState, workload: Workload) -> Lookup:
    """Names that Envoy resolves are not those of the mesh: the virtual address leads to Envoy."""

    def look_up(name: str) -> DnsAnswer | None:
        if mesh.resolves_name(workload.gateway, name):
            return None
        found = lookup(mesh, workload.namespace, name)
        if found is not None and mesh.resolves_name(workload.gateway, found.alias):
            return DnsAnswer(found.zone, exists=False)  # the next name of the search list
        return found

    return look_up


def _workload(context: Context, pod: Pod) -> Workload | None:
    return context.mesh.workload(pod.workload) if context.mesh is not None else None
