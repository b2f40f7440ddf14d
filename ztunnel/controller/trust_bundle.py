# SPDX-License-Identifier: Apache-2.0
"""Which roots the mesh trusts while its CA changes: pure, its clock passed in.

    in the CA's Secret ----------------------------------> trusted
    published, not in the Secret any more --keep----------> trusted, until what it signed is over
                                           --keep is over-> dropped

So replacing the Secret is a whole rotation: old and new root overlap by themselves. A new CA signs
only once its root was published for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


@dataclass(frozen=True)
class Trust:
    """`roots` by SHA-256 in hex; `retiring` says of some of them until when, in Unix seconds."""

    roots: Mapping[str, bytes]
    retiring: Mapping[str, float]

    @property
    def bundle(self) -> bytes:
        """All of them as PEM; the same roots always give the same text."""
        return b"".join(pem for _, pem in sorted(self.roots.items()))


def read_roots(pem: bytes) -> dict[str, bytes]:
    """The certificates of a bundle by SHA-256; empty when it holds none or is broken."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return {}
    encoding = serialization.Encoding.PEM
    return {one.fingerprint(hashes.SHA256()).hex(): one.public_bytes(encoding) for one in found}


def plan(
    wanted: Iterable[bytes],
    published: bytes,
    retiring: Mapping[str, float],
    *,
    now: float,
    keep: float,
) -> Trust:
    """What to publish: `wanted` bundles, and what was published as long as it may be needed.

    `keep` is how long a certificate lives that was signed just before its CA went, in seconds.
    """
    roots: dict[str, bytes] = {}
    for bundle in wanted:
        roots.update(read_roots(bundle))
    ends: dict[str, float] = {}
    for name, pem in read_roots(published).items():
        if name in roots:
            continue
        end = min(retiring.get(name, now + keep), now + keep)
        if now < end:
            roots[name], ends[name] = pem, end
    return Trust(roots, ends)
