# SPDX-License-Identifier: Apache-2.0
"""Which connections may share a tunnel."""

from __future__ import annotations

import msgspec

from ztunnel.mesh.model import SocketAddress


class PoolKey(msgspec.Struct, frozen=True):
    """Everything that two connections must have in common to share a tunnel."""

    pod_uid: str  # the source pod, hence the source address and network namespace
    source: str  # SPIFFE ID of the source
    expected: frozenset[str]  # SPIFFE IDs, one of which the peer must prove
    address: SocketAddress  # destination of the tunnel
    workload: str  # Workload.uid of the destination
    workload_pod: str  # its pod_uid: a successor at the same address has another key
