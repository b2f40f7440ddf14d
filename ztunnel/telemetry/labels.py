# SPDX-License-Identifier: Apache-2.0
"""The labels of Istio's TCP metrics: their names, their order, and their values for a connection.

A label set is a tuple in the order of LABELS. Workers and the agent use it as a dict key, and
`CounterReport` carries it unchanged. Unknown values are `unknown`.
"""

from __future__ import annotations

from enum import StrEnum

from ztunnel.mesh import canonical_service
from ztunnel.mesh.model import Service, Workload
from ztunnel.telemetry.response_flags import Flag

UNKNOWN = "unknown"
OVERFLOW = "overflow"

_WORKLOAD_LABELS = (
    "workload",
    "workload_namespace",
    "canonical_service",
    "canonical_revision",
    "app",
    "version",
    "cluster",
    "principal",
)
LABELS = (
    "reporter",
    *(f"source_{name}" for name in _WORKLOAD_LABELS),
    *(f"destination_{name}" for name in _WORKLOAD_LABELS),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "connection_security_policy",
    "response_flags",
)
_SOURCE = slice(1, 8)  # without the principal
_DESTINATION = slice(9, 16)

Labels = tuple[str, ...]
WorkloadLabels = tuple[str, ...]

_UNKNOWN_WORKLOAD: WorkloadLabels = (UNKNOWN,) * 7
_UNKNOWN_SERVICE = (UNKNOWN,) * 3


class Reporter(StrEnum):
    """Values of `reporter`: the side whose proxy counted the connection."""

    SOURCE = "source"
    DESTINATION = "destination"


class Security(StrEnum):
    """Values of `connection_security_policy`."""

    MUTUAL_TLS = "mutual_tls"
    UNKNOWN = UNKNOWN


def workload_labels(workload: Workload | None) -> WorkloadLabels:
    """A workload's labels without its principal. All replicas of one revision share them.

    `app` and `version` are the canonical service and revision, as in Istio's ztunnel.
    """
    if workload is None:
        return _UNKNOWN_WORKLOAD
    service, revision = canonical_service.service(workload), canonical_service.revision(workload)
    return (
        canonical_service.owner(workload)[1] or UNKNOWN,
        workload.namespace or UNKNOWN,
        service or UNKNOWN,
        revision or UNKNOWN,
        service or UNKNOWN,
        revision or UNKNOWN,
        workload.cluster or UNKNOWN,
    )


def connection_labels(
    reporter: Reporter,
    source: Workload | None,
    destination: Workload | None,
    *,
    service: Service | None = None,
    principals: tuple[str, str] = ("", ""),
    security: Security = Security.UNKNOWN,
    protocol: str = "tcp",
) -> Labels:
    """The label set of a connection that did not fail. `principals` are proven identities."""
    service_labels = _UNKNOWN_SERVICE
    if service is not None:
        service_labels = (service.hostname or UNKNOWN, service.name, service.namespace)
    return (
        reporter.value,
        *workload_labels(source),
        principals[0] or UNKNOWN,
        *workload_labels(destination),
        principals[1] or UNKNOWN,
        *service_labels,
        protocol,
        security.value,
        Flag.NONE.value,
    )


def with_flag(labels: Labels, flag: str) -> Labels:
    """The same label set with another response flag."""
    return (*labels[:-1], flag)


def peer_labels(labels: Labels) -> tuple[WorkloadLabels, WorkloadLabels]:
    """Source and destination, in the form of `workload_labels`."""
    return labels[_SOURCE], labels[_DESTINATION]


def is_known_workload(workload: WorkloadLabels) -> bool:
    """Whether the labels name a workload."""
    return workload != _UNKNOWN_WORKLOAD


def overflow_labels(labels: Labels) -> Labels:
    """The series that aggregates what exceeds a limit; it retains `reporter`."""
    return (labels[0], *(OVERFLOW,) * (len(LABELS) - 1))
