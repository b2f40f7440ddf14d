# SPDX-License-Identifier: Apache-2.0
"""The peers; add a class here."""

from __future__ import annotations

from bench.peers.envoy import Envoy
from bench.peers.external import External
from bench.peers.haproxy import Haproxy
from bench.peers.peer import Peer
from bench.peers.plain import NoMesh

PEERS: tuple[type[Peer], ...] = (NoMesh, Haproxy, Envoy, External)
