# SPDX-License-Identifier: Apache-2.0
"""The `baggage` header: what a proxy tells its peer about the workload it speaks for.

Comma-joined `key=value` with OpenTelemetry's resource keys, as istio/ztunnel sends them. It is
hearsay for telemetry; nothing is decided by it.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from ztunnel.mesh import canonical_service
from ztunnel.mesh.model import Workload

MAX_BAGGAGE = 8192  # bytes, W3C Baggage section 3.3
MAX_MEMBERS = 64  # W3C allows 180; we know nine keys
_SAFE = "!#$&'()*+-./:<>?@[]^_`{|}~"  # baggage-octet without our separators


class BaggageError(ValueError):
    """A header beyond the limits or not of the form."""


def baggage(workload: Workload) -> str:
    """The header's value for a workload; ASCII."""
    labels = workload.labels
    kind, name = canonical_service.owner(workload)
    members = {
        "k8s.cluster.name": workload.cluster,
        "k8s.namespace.name": workload.namespace,
        f"k8s.{kind}.name": name,
        "service.name": canonical_service.service(workload),
        "service.version": canonical_service.revision(workload),
        "cloud.region": labels.get("topology.kubernetes.io/region", ""),
        "cloud.availability_zone": labels.get("topology.kubernetes.io/zone", ""),
    }
    return ",".join(f"{key}={quote(value, safe=_SAFE)}" for key, value in members.items() if value)


def parse_baggage(value: bytes) -> dict[str, str]:
    """Read a header's value; of a key that comes twice the last counts. Raises BaggageError."""
    if len(value) > MAX_BAGGAGE:
        raise BaggageError(f"{len(value)} bytes; limit {MAX_BAGGAGE}")
    try:
        members = [part.strip() for part in value.decode("ascii").split(",") if part.strip()]
    except UnicodeDecodeError as error:
        raise BaggageError("not ASCII") from error
    if len(members) > MAX_MEMBERS:
        raise BaggageError(f"{len(members)} members; limit {MAX_MEMBERS}")
    found = {}
    for member in members:
        key, separator, rest = member.partition("=")
        key, said = key.strip(), unquote(rest.partition(";")[0].strip())
        if not separator or not key:
            raise BaggageError(f"{member[:64]!r} is no key=value")
        if not (key.isprintable() and said.isprintable()):
            raise BaggageError(f"{key[:64]!r} has a control character")
        found[key] = said
    return found
