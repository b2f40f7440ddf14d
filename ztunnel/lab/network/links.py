# SPDX-License-Identifier: Apache-2.0
"""The wires of the lab: underlay bridge, node links, routed pod links. By netlink (pyroute2).

    netns zt<lab>-underlay      br0 ─┬─ node1          node2 ─┬─ br0
    netns zt<lab>-node1        eth0 ─┘                        └─ eth0    netns zt<lab>-node2
                             pod1a2b… (one veth per pod, routed)
    netns zt<lab>-default-client  └─ eth0

Each link carries permanent neighbours and addresses without duplicate detection, so that it is
usable at once and nothing depends on ARP or ND timing. Every function may be called again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pyroute2 import NetNS

from ztunnel.lab.cluster.scheduler import NodePlan
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses, netns

MTU = 1500  # the same everywhere: path MTU discovery must not be what a test measures
BRIDGE = "br0"

_NODAD = 0x02  # IFA_F_NODAD
_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"  # every pod's gateway, as Calico does
_PREFIX_LENGTH = {False: 32, True: 128}

_SYSCTLS = {
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    # Not what the host was tuned to, so that labs are alike: BBR paces by timers. Every kernel has
    # reno, every namespace may take it, and the lab loses no segments.
    "ipv4/tcp_congestion_control": "reno",
}
_NODE_SYSCTLS = _SYSCTLS | {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "1",
    "ipv4/conf/default/rp_filter": "1",
}
_POD_SYSCTLS = _SYSCTLS | {
    "ipv6/conf/default/accept_ra": "0",
    "ipv4/ip_unprivileged_port_start": "0",  # as container runtimes do
    "ipv4/ping_group_range": "0 2147483647",
}


def pod_interface(uid: str) -> str:
    """The name of a pod's link in its node's namespace."""
    return f"pod{hashlib.sha256(uid.encode()).hexdigest()[:10]}"


def ensure_underlay(names: LabNames) -> None:
    """The bridge in a namespace of its own."""
    netns.create(names.underlay_netns, _SYSCTLS)
    with NetNS(names.underlay_netns, flags=0) as underlay:
        _up(underlay, "lo")
        if not _index(underlay, BRIDGE):
            underlay.link("add", ifname=BRIDGE, kind="bridge", br_forward_delay=0, mtu=MTU)
        _up(underlay, BRIDGE)


def ensure_node(names: LabNames, node: NodePlan, nodes: Sequence[NodePlan]) -> None:
    """The node's namespace, its link to the bridge and its routes to the other nodes' pods."""
    own = names.node_netns(node.name)
    netns.create(own, _NODE_SYSCTLS)
    with NetNS(own, flags=0) as space:
        loopback = _up(space, "lo")
        for ip in addresses.DNS_ADDRESSES:
            _address(space, loopback, ip)
        if not _index(space, "eth0"):
            _plug(names, space, node)
        link = _up(space, "eth0")
        for ip, length in zip(
            addresses.node_addresses(node.index), addresses.UNDERLAY_PREFIX_LENGTHS, strict=True
        ):
            _address(space, link, ip, length)
        _node_routes(space, link, node, nodes)


def _plug(names: LabNames, space: NetNS, node: NodePlan) -> None:
    with NetNS(names.underlay_netns, flags=0) as underlay:
        if stale := _index(underlay, node.name):
            underlay.link("del", index=stale)
        underlay.link(
            "add",
            ifname=node.name,
            kind="veth",
            mtu=MTU,
            peer={"ifname": "eth0", "mtu": MTU, "net_ns_fd": names.node_netns(node.name)},
        )
        bridge = _index(underlay, BRIDGE)
        underlay.link("set", index=_index(underlay, node.name), master=bridge)
        _up(underlay, node.name)


def _node_routes(space: NetNS, link: int, node: NodePlan, nodes: Sequence[NodePlan]) -> None:
    own = addresses.node_addresses(node.index)
    # kube-proxy's rewrite of a node's own connection happens after routing: it needs a route
    for cidr, source in zip(addresses.SERVICE_CIDRS, own, strict=True):
        space.route("replace", dst=cidr, oif=link, prefsrc=source)
    for other in nodes:
        if other == node:
            continue
        pairs = zip(
            addresses.pod_cidrs(other.index),
            addresses.node_addresses(other.index),
            own,
            strict=True,
        )
        for cidr, gateway, source in pairs:
            space.route("replace", dst=cidr, gateway=gateway, oif=link, prefsrc=source)


def create_pod(names: LabNames, node: NodePlan, pod_netns: str, uid: str, ips: list[str]) -> None:
    """A fresh namespace for a pod, linked to its node and routed both ways."""
    netns.remove(pod_netns)
    netns.create(pod_netns, _POD_SYSCTLS)
    interface = pod_interface(uid)
    mac = "02:" + hashlib.sha256(uid.encode()).digest()[:5].hex(":")
    own = addresses.node_addresses(node.index)
    with NetNS(names.node_netns(node.name), flags=0) as space:
        if stale := _index(space, interface):
            space.link("del", index=stale)
        space.link(
            "add",
            ifname=interface,
            kind="veth",
            mtu=MTU,
            address=_GATEWAY_MAC,
            peer={"ifname": "eth0", "mtu": MTU, "address": mac, "net_ns_fd": pod_netns},
        )
        with NetNS(pod_netns, flags=0) as pod:
            _pod_side(pod, ips)
        link = _up(space, interface)
        _address(space, link, addresses.POD_GATEWAYS[1], 64)
        for ip, source in zip(ips, own, strict=True):
            length = _PREFIX_LENGTH[addresses.is_ipv6(ip)]
            space.neigh("replace", dst=ip, lladdr=mac, ifindex=link, state="permanent")
            space.route("replace", dst=f"{ip}/{length}", oif=link, prefsrc=source)


def _pod_side(pod: NetNS, ips: list[str]) -> None:
    _up(pod, "lo")
    link = _up(pod, "eth0")
    for ip, gateway in zip(ips, addresses.POD_GATEWAYS, strict=True):
        _address(pod, link, ip)
        pod.neigh("replace", dst=gateway, lladdr=_GATEWAY_MAC, ifindex=link, state="permanent")
        if not addresses.is_ipv6(ip):
            pod.route("replace", dst=f"{gateway}/32", oif=link, scope="link")
        default = "::/0" if addresses.is_ipv6(ip) else "0.0.0.0/0"
        pod.route("replace", dst=default, gateway=gateway, oif=link)


def _index(space: NetNS, interface: str) -> int | None:
    found: list[int] = space.link_lookup(ifname=interface)
    return found[0] if found else None


def _up(space: NetNS, interface: str) -> int:
    index = _index(space, interface)
    assert index is not None, interface
    space.link("set", index=index, state="up")
    return index


def _address(space: NetNS, link: int, ip: str, length: int | None = None) -> None:
    ipv6 = addresses.is_ipv6(ip)
    space.addr(
        "replace",
        index=link,
        address=ip,
        prefixlen=length or _PREFIX_LENGTH[ipv6],
        **({"flags": _NODAD} if ipv6 else {}),
    )
