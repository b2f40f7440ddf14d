# SPDX-License-Identifier: Apache-2.0
"""Which connections may share a tunnel."""

from __future__ import annotations

import msgspec

from ztunnel.mesh.model import SocketAddress


class PoolKey(msgspec.Struct, frozen=True):
    """All that two connections must have in common to share a tunnel."""

    pod_uid: str  # the source pod: its namespace, hence its source address
    source: str  # our SPIFFE id
    expected: frozenset[str]  # the peer must prove one of these
    address: SocketAddress  # where the tunnel goes
    workload: str  # the destination's Workload.uid
    workload_pod: str  # and its pod_uid, so that a successor at the address differs
