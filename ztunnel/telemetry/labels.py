# SPDX-License-Identifier: Apache-2.0
"""The labels of Istio's TCP metrics: names, order, and what a connection has for them.

A label set is a plain tuple in the order of LABELS: it is a dict's key on every side, and travels
from workers to the agent as it is. What is not known is `unknown`.
"""

from __future__ import annotations

from enum import StrEnum

from ztunnel.mesh import canonical_service
from ztunnel.mesh.model import Service, Workload
from ztunnel.telemetry.response_flags import Flag

UNKNOWN = "unknown"
OVERFLOW = "overflow"

_END = (
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
    *(f"source_{name}" for name in _END),
    *(f"destination_{name}" for name in _END),
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
End = tuple[str, ...]

_NOBODY: End = (UNKNOWN,) * 7
_NO_SERVICE = (UNKNOWN,) * 3


class Reporter(StrEnum):
    """Whose proxy counted the connection."""

    SOURCE = "source"
    DESTINATION = "destination"


class Security(StrEnum):
    """Values of `connection_security_policy`."""

    MUTUAL_TLS = "mutual_tls"
    UNKNOWN = UNKNOWN


def end(workload: Workload | None) -> End:
    """A workload's labels without its principal: one for all replicas of one version.

    `app` and `version` are the canonical ones, as Istio's ztunnel has them.
    """
    if workload is None:
        return _NOBODY
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


def traffic(
    reporter: Reporter,
    source: Workload | None,
    destination: Workload | None,
    *,
    service: Service | None = None,
    principals: tuple[str, str] = ("", ""),
    security: Security = Security.UNKNOWN,
    protocol: str = "tcp",
) -> Labels:
    """The label set of a connection without a failure; `principals` are proven identities."""
    said = _NO_SERVICE
    if service is not None:
        said = (service.hostname or UNKNOWN, service.name, service.namespace)
    return (
        reporter.value,
        *end(source),
        principals[0] or UNKNOWN,
        *end(destination),
        principals[1] or UNKNOWN,
        *said,
        protocol,
        security.value,
        Flag.NONE.value,
    )


def with_flag(labels: Labels, flag: str) -> Labels:
    """The same connection with another response flag."""
    return (*labels[:-1], flag)


def ends(labels: Labels) -> tuple[End, End]:
    """Source and destination as `end` gives them."""
    return labels[_SOURCE], labels[_DESTINATION]


def is_somebody(one: End) -> bool:
    """Whether the end names a workload."""
    return one != _NOBODY


def overflow(labels: Labels) -> Labels:
    """The series that counts what there is no room for; who reports stays."""
    return (labels[0], *(OVERFLOW,) * (len(LABELS) - 1))
