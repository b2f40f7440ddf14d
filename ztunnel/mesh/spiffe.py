# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs in Istio's form: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.

The parser accepts exactly this form.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123, as for Kubernetes names
_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_ID = re.compile(rf"spiffe://({_NAME})/ns/({_LABEL})/sa/({_NAME})")
_MAX_ID_CHARS = 2048  # SPIFFE-ID standard, section 2.3


class SpiffeError(ValueError):
    """The text is not the SPIFFE ID of a Kubernetes service account."""


class SpiffeId(NamedTuple):
    """The parts of a SPIFFE ID; `str()` returns the ID."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def parse(text: str) -> SpiffeId:
    """Parse a SPIFFE ID. Raises SpiffeError."""
    match = _ID.fullmatch(text) if len(text) <= _MAX_ID_CHARS else None
    if match is None:
        raise SpiffeError(f"{text[:128]!r} is not spiffe://<trust domain>/ns/<ns>/sa/<account>")
    return SpiffeId(*match.groups())
