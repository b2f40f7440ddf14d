# SPDX-License-Identifier: Apache-2.0
"""SPIFFE ids as Istio forms them: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.

Exactly that form is taken, nothing near it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123, as Kubernetes wants names
_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_ID = re.compile(rf"spiffe://({_NAME})/ns/({_LABEL})/sa/({_NAME})")
_MAX_ID = 2048  # SPIFFE-ID standard, section 2.3


class SpiffeError(ValueError):
    """A text that is no SPIFFE id of a Kubernetes service account."""


class SpiffeId(NamedTuple):
    """The parts of an id; `str()` gives the id back."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def parse(text: str) -> SpiffeId:
    """The parts of an id. Raises SpiffeError."""
    match = _ID.fullmatch(text) if len(text) <= _MAX_ID else None
    if match is None:
        raise SpiffeError(f"{text[:128]!r} is not spiffe://<trust domain>/ns/<ns>/sa/<account>")
    return SpiffeId(*match.groups())
