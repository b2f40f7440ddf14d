# SPDX-License-Identifier: Apache-2.0
"""Fields that telemetry adds to filters and endpoints."""

from __future__ import annotations

from typing import NamedTuple

from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Destination, Inputs
from ztunnel.l7.problems import Problem
from ztunnel.l7.telemetry import access_log, grpc_messages, labels, metrics, tracing
from ztunnel.l7.telemetry.effective import Effective, effective_telemetry, telemetry_problems
from ztunnel.l7.telemetry.mesh_config import mesh_telemetry
from ztunnel.l7.telemetry.metrics import Metric
from ztunnel.mesh.model import Service, Workload


class GrpcFields(NamedTuple):
    """HTTP filters in front of all others, and fields of the router."""

    filters: tuple[Json, ...]
    router: Json


NO_GRPC = GrpcFields((), {})


def hcm(inputs: Inputs, destination: Destination) -> Json:
    """Return fields of HttpConnectionManager: access logs, metrics and tracing."""
    effective = effective_telemetry(inputs, destination)
    tags = _merged(labels.http_tags(destination, inputs.settings), effective)
    loggers = metrics.http_loggers(_scope(destination), tags, _max_series(destination))
    fields: Json = {"access_log": [*loggers, *_logs(effective)]}
    if effective.spans is not None:
        namespace, _, name = destination.gateway.partition("/")
        fields |= tracing.hcm_fields(effective.spans, f"{name}.{namespace}")
    return fields


def grpc(inputs: Inputs, destination: Destination) -> GrpcFields:
    """Return what counts gRPC messages; empty if no such metric is enabled."""
    effective = effective_telemetry(inputs, destination)
    tags = _merged(labels.http_tags(destination, inputs.settings), effective)
    if not tags.keys() & {Metric.GRPC_REQUEST_MESSAGES, Metric.GRPC_RESPONSE_MESSAGES}:
        return NO_GRPC
    router = grpc_messages.router_fields(_scope(destination), tags)
    return GrpcFields(tuple(grpc_messages.http_filters()), router)


def tcp(inputs: Inputs, destination: Destination) -> Json:
    """Return fields of TcpProxy."""
    effective = effective_telemetry(inputs, destination)
    tags = _merged(labels.tcp_tags(destination, inputs.settings), effective)
    loggers = metrics.tcp_loggers(_scope(destination), tags, _max_series(destination))
    ends = {"log_type_filter": {"types": ["TcpConnectionEnd"]}}
    for logger in _logs(effective):
        filters = [ends, *([logger["filter"]] if "filter" in logger else [])]
        only_ends = {"and_filter": {"filters": filters}} if len(filters) > 1 else ends
        loggers.append(logger | {"filter": only_ends})
    return {"access_log": loggers, "access_log_options": {"flush_access_log_on_start": True}}


def udp(inputs: Inputs, destination: Destination) -> Json:
    """Return fields of UdpProxyConfig: a line of the access log at the end of each session."""
    return {"access_log": _logs(effective_telemetry(inputs, destination))}


def refused(inputs: Inputs, destination: Destination) -> list[Json]:
    """Return `access_log` of a listener with TLS, for connections that no chain logs."""
    effective = effective_telemetry(inputs, destination)
    if not effective.logs:
        return []
    return [access_log.refused_log(effective.log_encoding, effective.log_expressions)]


def endpoint_metadata(inputs: Inputs, service: Service, workload: Workload | None) -> Json:
    """Return `metadata` of an LbEndpoint."""
    found = labels.endpoint_labels(service, workload, inputs.settings)
    return {"filter_metadata": {labels.METADATA: found}}


def clusters(inputs: Inputs) -> tuple[Json, ...]:
    """Return the clusters of the collectors of traces."""
    return tuple(mesh_telemetry(inputs.settings).collectors.values())


def problems(inputs: Inputs) -> tuple[Problem, ...]:
    """Return the problems of all Telemetry objects."""
    return telemetry_problems(inputs)


def _logs(effective: Effective) -> list[Json]:
    if not effective.logs:
        return []
    return [access_log.access_log(effective.log_encoding, effective.log_expressions)]


def _merged(tags: list[Json], effective: Effective) -> metrics.Tags:
    return {metric: _overridden(tags, changes) for metric, changes in effective.tags.items()}


def _overridden(tags: list[Json], changes: dict[str, str | None]) -> list[Json]:
    if not changes:
        return tags
    kept = [tag for tag in tags if tag["name"] not in changes]
    return kept + [
        {"name": name, "value_format": value}
        for name, value in changes.items()
        if value is not None
    ]


def _max_series(destination: Destination) -> int:
    return metrics.MAX_SERIES if destination.edge is None else metrics.MAX_GATEWAY_SERIES


def _scope(destination: Destination) -> str:
    """The name of the scope of a destination's metrics."""
    if destination.service is not None and destination.port is not None:
        return f"{destination.service.key}|{destination.port.port}"
    return destination.workload.uid if destination.workload is not None else destination.gateway
