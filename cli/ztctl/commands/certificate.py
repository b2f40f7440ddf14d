# SPDX-License-Identifier: Apache-2.0
"""`ztctl certificate`: the node's workload certificates."""

from __future__ import annotations

import time

from ztctl import output
from ztctl.output import Column, Row
from ztctl.resources import Resource, list_group


def _remaining(certificate: Row) -> str:
    left = float(certificate.get("not_after") or 0) - time.time()
    return output.format_duration(left) if left > 0 else "expired"


CERTIFICATES = Resource(
    "certificate",
    "/v1/certificates",
    "Workload certificates of the node, without private keys.",
    (
        Column("NODE", "node"),
        Column("IDENTITY", "identity"),
        Column("STATE", "state"),
        Column("VALID", "valid"),
        Column("RENEWALS", "renewals"),
        Column("SERIAL", "serial"),
        Column("ERROR", "last_error"),
    ),
    per_node=True,
    computed={"valid": _remaining},
)

certificate = list_group(CERTIFICATES)
