# SPDX-License-Identifier: Apache-2.0
"""Computes the set of trusted roots during a CA rotation. Pure.

    in a CA Secret ───────────────────────────▶ trusted
    published, but no longer in a Secret ─────▶ trusted until every certificate it signed expired,
                                                then removed

Replacing the Secret is therefore a complete rotation: the old and the new root overlap. A new CA
signs once its root has been published for a while (`ca_manager`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


@dataclass(frozen=True)
class TrustBundle:
    """`roots`: PEM by SHA-256 in hex; `expiring`: when some of them are removed, Unix seconds."""

    roots: Mapping[str, bytes]
    expiring: Mapping[str, float]

    @property
    def pem(self) -> bytes:
        """All roots; equal sets of roots give equal text."""
        return b"".join(pem for _, pem in sorted(self.roots.items()))


def parse_roots(pem: bytes) -> dict[str, bytes]:
    """The certificates of a bundle by SHA-256; empty if the bundle is malformed."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return {}
    encoding = serialization.Encoding.PEM
    return {one.fingerprint(hashes.SHA256()).hex(): one.public_bytes(encoding) for one in found}


def next_bundle(
    wanted: Iterable[bytes],
    published: bytes,
    expiring: Mapping[str, float],
    *,
    now: float,
    retention_s: float,
) -> TrustBundle:
    """The `wanted` bundles, and those published roots that certificates may still depend on.

    `retention_s`: the lifetime of a certificate that was signed just before its CA was removed.
    """
    roots: dict[str, bytes] = {}
    for bundle in wanted:
        roots.update(parse_roots(bundle))
    ends: dict[str, float] = {}
    for name, pem in parse_roots(published).items():
        if name in roots:
            continue
        end = min(expiring.get(name, now + retention_s), now + retention_s)
        if now < end:
            roots[name], ends[name] = pem, end
    return TrustBundle(roots, ends)
