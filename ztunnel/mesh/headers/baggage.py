# SPDX-License-Identifier: Apache-2.0
"""The `baggage` header: describes the workload on whose behalf a proxy sends or responds.

Comma-separated `key=value` pairs with OpenTelemetry's resource keys, as istio/ztunnel sends them.
The values are unverified: telemetry uses them, decisions do not.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from ztunnel.mesh import canonical_service
from ztunnel.mesh.model import Workload

MAX_BAGGAGE_BYTES = 8192  # bytes, W3C Baggage section 3.3
MAX_MEMBERS = 64  # W3C allows 180; nine keys are in use
_SAFE = "!#$&'()*+-./:<>?@[]^_`{|}~"  # baggage-octet without the separators used here


class BaggageError(ValueError):
    """The header exceeds a limit or is malformed."""


def baggage(workload: Workload) -> str:
    """Format the header value of a workload; ASCII."""
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
    """Parse a header value; the last of duplicate keys wins. Raises BaggageError."""
    if len(value) > MAX_BAGGAGE_BYTES:
        raise BaggageError(f"{len(value)} bytes; limit {MAX_BAGGAGE_BYTES}")
    try:
        members = [part.strip() for part in value.decode("ascii").split(",") if part.strip()]
    except UnicodeDecodeError as error:
        raise BaggageError("not ASCII") from error
    if len(members) > MAX_MEMBERS:
        raise BaggageError(f"{len(members)} members; limit {MAX_MEMBERS}")
    found = {}
    for member in members:
        key, separator, rest = member.partition("=")
        key, decoded = key.strip(), unquote(rest.partition(";")[0].strip())
        if not separator or not key:
            raise BaggageError(f"{member[:64]!r} is not key=value")
        if not (key.isprintable() and decoded.isprintable()):
            raise BaggageError(f"{key[:64]!r} contains a control character")
        found[key] = decoded
    return found
