# SPDX-License-Identifier: Apache-2.0
"""Splits mesh state into messages that fit into a packet of the agent link."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

import msgspec
import structlog

from ztunnel.ipc.messages import HostGroup, MeshDelta
from ztunnel.kube.objects.policies import replace_oversized
from ztunnel.kube.objects.service_entries import MAX_ADDRESSES
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.policy.model import AuthorizationPolicy, PeerAuthentication, Policy

CHUNK_BYTES = 240 * 1024  # of items in a message, which stays below 256 KiB with its frame

MAX_GROUP_HOSTS = 256  # of 253 characters: 64 KiB, and CHUNK_BYTES with the shared part
_GROUP_FRAME_BYTES = 32  # the names of the fields of a HostGroup

MAX_EXPORTS = 256  # namespaces of a service that is too large for a message

Item = Workload | Service | HostGroup | Policy

log = structlog.get_logger()
_encoder = msgspec.msgpack.Encoder()


def snapshot(
    revision: int,
    workloads: Iterable[Workload],
    services: Iterable[Service],
    policies: Iterable[Policy] = (),
    *,
    registry_only: bool = False,
    same_node_direct: bool = False,
) -> Iterator[MeshDelta]:
    """The complete state: the first message has `reset`, the last one `complete`."""
    parts = list(_parts([*workloads, *_grouped(services), *policies])) or [[]]
    for index, part in enumerate(parts):
        yield MeshDelta(
            revision=revision,
            workloads=_workloads(part),
            services=_services(part),
            host_groups=tuple(item for item in part if isinstance(item, HostGroup)),
            policies=_policies(part),
            reset=index == 0,
            registry_only=registry_only and index == 0,
            same_node_direct=same_node_direct and index == 0,
            complete=index == len(parts) - 1,
        )


def change(delta: MeshDelta) -> Iterator[MeshDelta]:
    """A change of the state: removals first; all messages except the last have `more`."""
    parts = list(_changes(delta))
    for part in parts[:-1]:
        yield msgspec.structs.replace(part, more=True)
    yield from parts[-1:]


def _changes(delta: MeshDelta) -> Iterator[MeshDelta]:
    yield from _removals(delta)
    for part in _parts([*delta.workloads, *_grouped(delta.services), *delta.policies]):
        yield MeshDelta(
            revision=delta.revision,
            workloads=_workloads(part),
            services=_services(part),
            host_groups=tuple(item for item in part if isinstance(item, HostGroup)),
            policies=_policies(part),
        )


def _removals(delta: MeshDelta) -> Iterator[MeshDelta]:
    per_message = CHUNK_BYTES // 600  # a name has at most 253 characters, a namespace 63
    for names, field in (
        (delta.removed_workloads, "removed_workloads"),
        (delta.removed_services, "removed_services"),
        (delta.removed_policies, "removed_policies"),
    ):
        for at in range(0, len(names), per_message):
            removed = {field: names[at : at + per_message]}
            yield MeshDelta(revision=delta.revision, **removed)  # type: ignore[arg-type]


def _grouped(services: Iterable[Service]) -> list[Service | HostGroup]:
    """Combine the hosts of one ServiceEntry, which share one tuple of endpoints."""
    groups: dict[Hashable, list[Service]] = {}
    for service in services:
        key: Hashable = service.key
        if service.is_service_entry and service.endpoints:
            key = _shared_part(service)
        groups.setdefault(key, []).append(service)
    found: list[Service | HostGroup] = []
    for members in groups.values():
        if len(members) == 1:
            found += members
            continue
        for at in range(0, len(members), MAX_GROUP_HOSTS):
            hosts = tuple(each.hostname for each in members[at : at + MAX_GROUP_HOSTS])
            found.append(HostGroup(members[0], hosts))
    return found


def _shared_part(service: Service) -> Hashable:
    """Return what the hosts of one ServiceEntry have in common."""
    return (
        *(service.namespace, service.vips, service.ports, id(service.endpoints)),
        *(service.export_to, service.networks, service.upstream_dns),
    )


def _parts(items: list[Item]) -> Iterator[list[Item]]:
    part: list[Item] = []
    size = 0
    for item in items:
        fitting, length = _truncate(item)
        if part and size + length > CHUNK_BYTES:
            yield part
            part, size = [], 0
        part.append(fitting)
        size += length
    if part:
        yield part


def _truncate(item: Item) -> tuple[Item, int]:
    """The item and its size. A service with too many endpoints is truncated, ready ones first."""
    if isinstance(item, HostGroup):
        hosts = len(_encoder.encode(item.hosts))
        service, length = _truncate_service(item.service, CHUNK_BYTES - hosts - _GROUP_FRAME_BYTES)
        return HostGroup(service, item.hosts), length + hosts + _GROUP_FRAME_BYTES
    if isinstance(item, Service):
        return _truncate_service(item, CHUNK_BYTES)
    length = len(_encoder.encode(item))
    if length <= CHUNK_BYTES:
        return item, length
    # a backstop: the cluster view bounds labels and policies
    if isinstance(item, Workload):
        log.error("object too large for a message", object=item.uid, bytes=length)
        item = msgspec.structs.replace(item, labels={}, capture_refused="")
    else:
        item = replace_oversized(item)
    return item, len(_encoder.encode(item))


def _truncate_service(item: Service, max_bytes: int) -> tuple[Service, int]:
    length = len(_encoder.encode(item))
    while length > max_bytes and item.endpoints:
        limit = len(item.endpoints) * max_bytes // length
        log.warning(
            "service truncated", service=item.key, endpoints=len(item.endpoints), limit=limit
        )
        ordered = sorted(item.endpoints, key=lambda endpoint: not endpoint.ready)
        item = msgspec.structs.replace(item, endpoints=tuple(ordered[:limit]))
        length = len(_encoder.encode(item))
    if length > max_bytes:
        log.error("object too large for a message", object=item.key, bytes=length)
        # connections to a port that a service lacks are refused
        item = msgspec.structs.replace(
            item,
            vips=item.vips[:MAX_ADDRESSES],
            ports=(),
            networks=(),
            export_to=item.export_to[:MAX_EXPORTS],
        )
        length = len(_encoder.encode(item))
    return item, length


def _workloads(part: list[Item]) -> tuple[Workload, ...]:
    return tuple(item for item in part if isinstance(item, Workload))


def _services(part: list[Item]) -> tuple[Service, ...]:
    return tuple(item for item in part if isinstance(item, Service))


def _policies(part: list[Item]) -> tuple[Policy, ...]:
    return tuple(
        item for item in part if isinstance(item, AuthorizationPolicy | PeerAuthentication)
    )
