# SPDX-License-Identifier: Apache-2.0
"""Whether two identities of this node would authenticate each other in a TLS handshake.

A connection that the proxy hands over between two pods of its node has no handshake, although the
proxy holds the keys of both. The same certificates, roots and trust domains must allow it.
"""

from __future__ import annotations

import time

from ztunnel.proxy.tls import credentials as tls_credentials
from ztunnel.proxy.tls.credentials import Credentials, PeerVerificationError

RECHECK_S = 60.0  # then an issuer's expiry is noticed
MAX_PAIRS = 1024


class LocalTrust:
    """Verified pairs of client and server, until one of them has other credentials."""

    def __init__(self) -> None:
        # By both identities: the credentials, and until when the result is valid (Unix seconds).
        self._verified: dict[tuple[str, str], tuple[Credentials, Credentials, float]] = {}

    def is_mutual(self, client: Credentials, server: Credentials) -> bool:
        """Whether each side accepts the certificate of the other one now."""
        now = time.time()
        pair = client.identity, server.identity
        known = self._verified.get(pair)
        if known is not None and known[0] is client and known[1] is server and now < known[2]:
            return True
        self._verified.pop(pair, None)
        if not (_accepts(client, server) and _accepts(server, client)):
            return False
        if len(self._verified) >= MAX_PAIRS:
            self._verified.clear()
        self._verified[pair] = (
            client,
            server,
            min(now + RECHECK_S, _expiry(client), _expiry(server)),
        )
        return True


def _accepts(own: Credentials, peer: Credentials) -> bool:
    """Whether `own` accepts the certificate of `peer`, as after a full handshake."""
    domain = tls_credentials.trust_domain(own.identity)
    if not domain or domain != tls_credentials.trust_domain(peer.identity):
        return False
    try:
        if tls_credentials.identity_of(peer.leaf) != peer.identity:
            return False
    except (PeerVerificationError, ValueError):
        return False
    return own.trusts(peer, checks_time=True)


def _expiry(credentials: Credentials) -> float:
    return credentials.leaf.not_valid_after_utc.timestamp()
