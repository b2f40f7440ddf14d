# SPDX-License-Identifier: Apache-2.0
"""A machine outside the cluster, in the same network as the nodes.

    netns zt<lab>-external   eth0 ── br0 ── eth0 of each node

It knows no routes to pods and services. It has routes to the addresses of load balancers, through a
node that `ztunnel.lab.cluster.load_balancer` selects for each connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from socket import AF_INET, AF_INET6

from pyroute2 import NetNS

from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses, netns
from ztunnel.lab.network.addresses import Node
from ztunnel.lab.network.links import (
    SYSCTLS,
    add_address,
    connect_to_bridge,
    link_index,
    set_link_up,
)

_MAIN_TABLE = 254  # RT_TABLE_MAIN, linux/rtnetlink.h
_EXTERNAL_PORT = "external"  # of the bridge
_BALANCER_TABLES = 1000  # plus the node's index


def ensure(names: LabNames, nodes: Sequence[Node]) -> None:
    """Create the machine outside the cluster, with a routing table for each node.

    The table `balancer_table(node)` has the node as the next hop to the addresses of load
    balancers; packets with this mark use it.
    """
    netns.create(names.external_netns, SYSCTLS)
    with NetNS(names.external_netns, flags=0) as netlink:
        set_link_up(netlink, "lo")
        if not link_index(netlink, "eth0"):
            connect_to_bridge(names, _EXTERNAL_PORT, names.external_netns)
        link = set_link_up(netlink, "eth0")
        for ip, length in zip(
            addresses.EXTERNAL_ADDRESSES, addresses.UNDERLAY_PREFIX_LENGTHS, strict=True
        ):
            add_address(netlink, link, ip, length)
        rules: set[tuple[int, int | None]] = {
            (int(family), rule.get_attr("FRA_FWMARK"))
            for family in (AF_INET, AF_INET6)
            for rule in netlink.get_rules(family)
        }
        for node in nodes:
            _add_balancer_table(netlink, link, node, rules)


def balancer_table(node: Node) -> int:
    """The routing table, and the mark of packets, whose next hop is the node."""
    return _BALANCER_TABLES + node.index


def _add_balancer_table(
    netlink: NetNS, link: int, node: Node, rules: set[tuple[int, int | None]]
) -> None:
    table = balancer_table(node)
    for cidr, gateway, source, family in zip(
        addresses.BALANCER_CIDRS,
        addresses.node_addresses(node.index),
        addresses.EXTERNAL_ADDRESSES,
        (AF_INET, AF_INET6),
        strict=True,
    ):
        # the table for packets without a mark: a route must exist before the mark is set
        for number in (table, _MAIN_TABLE) if node.index == 1 else (table,):
            netlink.route(
                "replace", dst=cidr, gateway=gateway, oif=link, prefsrc=source, table=number
            )
        if (family, table) not in rules:
            netlink.rule("add", family=family, fwmark=table, table=table, priority=table)
