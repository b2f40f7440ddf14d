# SPDX-License-Identifier: Apache-2.0
"""The links of the lab: underlay bridge, node links and routed pod links, through pyroute2.

    netns zt<lab>-underlay      br0 ─┬─ node1          node2 ─┬─ br0
    netns zt<lab>-node1        eth0 ─┘                        └─ eth0    netns zt<lab>-node2
                             pod1a2b… (one veth per pod, routed)
    netns zt<lab>-default-client  └─ eth0

Neighbor entries are permanent, and duplicate address detection is off, so that links are usable at
once and tests do not depend on ARP or ND timing. All functions are idempotent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pyroute2 import NetNS

from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses, netns
from ztunnel.lab.network.addresses import Node

MTU = 1500  # the same on all links, so that tests do not depend on path MTU discovery
BRIDGE = "br0"

_IFA_F_NODAD = 0x02  # linux/if_addr.h
_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"  # of the gateway of all pods, as with Calico
_PREFIX_LENGTH = {False: 32, True: 128}

SYSCTLS = {
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    # Independent of the host's default, so that labs are comparable: BBR paces by timers. Reno is
    # in every kernel and allowed in every namespace.
    "ipv4/tcp_congestion_control": "reno",
}
_NODE_SYSCTLS = SYSCTLS | {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "1",
    "ipv4/conf/default/rp_filter": "1",
}
_POD_SYSCTLS = SYSCTLS | {
    "ipv6/conf/default/accept_ra": "0",
    "ipv4/ip_unprivileged_port_start": "0",  # the default of container runtimes
    "ipv4/ping_group_range": "0 2147483647",
}


def pod_interface(uid: str) -> str:
    """The name of a pod's link in its node's namespace."""
    return f"pod{hashlib.sha256(uid.encode()).hexdigest()[:10]}"


def ensure_underlay(names: LabNames) -> None:
    """Create the bridge, in a namespace of its own."""
    netns.create(names.underlay_netns, SYSCTLS)
    with NetNS(names.underlay_netns, flags=0) as underlay:
        set_link_up(underlay, "lo")
        if not link_index(underlay, BRIDGE):
            underlay.link("add", ifname=BRIDGE, kind="bridge", br_forward_delay=0, mtu=MTU)
        set_link_up(underlay, BRIDGE)


def ensure_node(names: LabNames, node: Node, nodes: Sequence[Node]) -> None:
    """Create the node's namespace, its link to the bridge and its routes to the other nodes."""
    node_netns = names.node_netns(node.name)
    netns.create(node_netns, _NODE_SYSCTLS)
    with NetNS(node_netns, flags=0) as netlink:
        loopback = set_link_up(netlink, "lo")
        for ip in addresses.DNS_ADDRESSES:
            add_address(netlink, loopback, ip)
        if not link_index(netlink, "eth0"):
            connect_to_bridge(names, node.name, node_netns)
        link = set_link_up(netlink, "eth0")
        for ip, length in zip(
            addresses.node_addresses(node.index), addresses.UNDERLAY_PREFIX_LENGTHS, strict=True
        ):
            add_address(netlink, link, ip, length)
        _add_node_routes(netlink, link, node, nodes)


def connect_to_bridge(names: LabNames, port: str, machine_netns: str) -> None:
    """Create the link `eth0` of a machine to the bridge, where its port is `port`."""
    with NetNS(names.underlay_netns, flags=0) as underlay:
        if stale := link_index(underlay, port):
            underlay.link("del", index=stale)
        underlay.link(
            "add",
            ifname=port,
            kind="veth",
            mtu=MTU,
            peer={"ifname": "eth0", "mtu": MTU, "net_ns_fd": machine_netns},
        )
        bridge = link_index(underlay, BRIDGE)
        underlay.link("set", index=link_index(underlay, port), master=bridge)
        set_link_up(underlay, port)


def _add_node_routes(netlink: NetNS, link: int, node: Node, nodes: Sequence[Node]) -> None:
    node_ips = addresses.node_addresses(node.index)
    # Connections of the node are routed before kube-proxy translates their destination.
    for cidr, source in zip(addresses.SERVICE_CIDRS, node_ips, strict=True):
        netlink.route("replace", dst=cidr, oif=link, prefsrc=source)
    for other in nodes:
        if other == node:
            continue
        pairs = zip(
            addresses.pod_cidrs(other.index),
            addresses.node_addresses(other.index),
            node_ips,
            strict=True,
        )
        for cidr, gateway, source in pairs:
            netlink.route("replace", dst=cidr, gateway=gateway, oif=link, prefsrc=source)


def create_pod(names: LabNames, node: Node, pod_netns: str, uid: str, ips: list[str]) -> None:
    """Create a new namespace for a pod, its link to the node, and routes in both directions."""
    netns.remove(pod_netns)
    netns.create(pod_netns, _POD_SYSCTLS)
    interface = pod_interface(uid)
    mac = "02:" + hashlib.sha256(uid.encode()).digest()[:5].hex(":")
    node_ips = addresses.node_addresses(node.index)
    with NetNS(names.node_netns(node.name), flags=0) as netlink:
        if stale := link_index(netlink, interface):
            netlink.link("del", index=stale)
        netlink.link(
            "add",
            ifname=interface,
            kind="veth",
            mtu=MTU,
            address=_GATEWAY_MAC,
            peer={"ifname": "eth0", "mtu": MTU, "address": mac, "net_ns_fd": pod_netns},
        )
        with NetNS(pod_netns, flags=0) as pod:
            _configure_pod(pod, ips)
        link = set_link_up(netlink, interface)
        add_address(netlink, link, addresses.POD_GATEWAYS[1], 64)
        for ip, source in zip(ips, node_ips, strict=True):
            length = _PREFIX_LENGTH[addresses.is_ipv6(ip)]
            netlink.neigh("replace", dst=ip, lladdr=mac, ifindex=link, state="permanent")
            netlink.route("replace", dst=f"{ip}/{length}", oif=link, prefsrc=source)


def _configure_pod(pod: NetNS, ips: list[str]) -> None:
    set_link_up(pod, "lo")
    link = set_link_up(pod, "eth0")
    for ip, gateway in zip(ips, addresses.POD_GATEWAYS, strict=True):
        add_address(pod, link, ip)
        pod.neigh("replace", dst=gateway, lladdr=_GATEWAY_MAC, ifindex=link, state="permanent")
        if not addresses.is_ipv6(ip):
            pod.route("replace", dst=f"{gateway}/32", oif=link, scope="link")
        default = "::/0" if addresses.is_ipv6(ip) else "0.0.0.0/0"
        pod.route("replace", dst=default, gateway=gateway, oif=link)


def link_index(netlink: NetNS, interface: str) -> int | None:
    """The index of an interface; None if it does not exist."""
    indexes: list[int] = netlink.link_lookup(ifname=interface)
    return indexes[0] if indexes else None


def set_link_up(netlink: NetNS, interface: str) -> int:
    """Set an interface up, and return its index."""
    index = link_index(netlink, interface)
    assert index is not None, interface
    netlink.link("set", index=index, state="up")
    return index


def add_address(netlink: NetNS, link: int, ip: str, length: int | None = None) -> None:
    """Add an address; `length` is that of its prefix, by default one address."""
    ipv6 = addresses.is_ipv6(ip)
    netlink.addr(
        "replace",
        index=link,
        address=ip,
        prefixlen=length or _PREFIX_LENGTH[ipv6],
        **({"flags": _IFA_F_NODAD} if ipv6 else {}),
    )
