# SPDX-License-Identifier: Apache-2.0
"""Updates the kernel's list of the node's own addresses, which the kubelet's probes come from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

import structlog

from ztunnel.datapath.netlink import rtnetlink
from ztunnel.kube.view.cluster_view import ClusterView

INTERVAL_S = 2.0

log = structlog.get_logger()


class NodeAddressMap(Protocol):
    """The part of the data path that is written here."""

    def set_node_addresses(self, addresses: Iterable[str]) -> None: ...


async def sync_node_addresses(kernel: NodeAddressMap, view: ClusterView, node: str) -> None:
    """Write the addresses of the interfaces and of the Node object, until cancelled."""
    known: set[str] = set()
    while True:
        try:
            now = {*rtnetlink.reachable_addresses(), *view.node_addresses(node)}
            if now != known:
                kernel.set_node_addresses(now)
                known = now
        except OSError as error:
            log.warning("node addresses unknown", error=str(error))
        await asyncio.sleep(INTERVAL_S)
