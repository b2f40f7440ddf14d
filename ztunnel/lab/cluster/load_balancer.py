# SPDX-License-Identifier: Apache-2.0
"""The lab's load balancer: selects a node for each connection from outside the cluster.

    client ─▶ load balancer address:port ─▶ a node that has an endpoint ─▶ kube-proxy ─▶ pod

It forwards packets unchanged (a pass-through load balancer): with externalTrafficPolicy Local, the
pod sees the client's address. Connections stay at their node when the set of nodes changes. It is a
table of nftables in the namespace of the machine outside. `render` is pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.lab.cluster.kube_proxy import Frontend
from ztunnel.lab.network import netns
from ztunnel.lab.network.addresses import BALANCER_CIDRS, Node
from ztunnel.lab.network.external import balancer_table

_TABLE = """\
table inet ztlab_balancer
delete table inet ztlab_balancer
table inet ztlab_balancer {{
{chains}
  chain balance {{
    ct mark != 0 meta mark set ct mark return
{rules}
  }}
  chain output {{
    type route hook output priority mangle
    ip daddr {cidr4} jump balance
    ip6 daddr {cidr6} jump balance
  }}
  chain no_node {{
    type filter hook output priority filter
    ip daddr {cidr4} meta mark 0 reject
    ip6 daddr {cidr6} meta mark 0 reject
  }}
}}
"""


def render(served: Sequence[Frontend], nodes: Sequence[Node]) -> str:
    """The nftables script that replaces the load balancer's table."""
    chains, rules = list[str](), list[str]()
    for frontend in served:
        targets = _nodes(frontend, nodes)
        if frontend.external and frontend.address and targets:
            family, name = "ip6" if frontend.ipv6 else "ip", f"balancer{len(chains)}"
            destination = f"{family} daddr {frontend.address} {frontend.protocol}"
            rules.append(f"    {destination} dport {frontend.port} goto {name}")
            chains.append(_chain(name, targets))
    return _TABLE.format(
        chains="\n".join(chains),
        rules="\n".join(rules),
        cidr4=BALANCER_CIDRS[0],
        cidr6=BALANCER_CIDRS[1],
    )


def apply(external_netns: str, script: str) -> None:
    """Load the script, in one transaction."""
    netns.run(external_netns, ["nft", "-f", "-"], stdin=script)


def _nodes(frontend: Frontend, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that accept connections to the frontend."""
    own = {backend.node for backend in frontend.used}
    return [node for node in nodes if not frontend.local or node.name in own]


def _chain(name: str, nodes: Sequence[Node]) -> str:
    choices = ", ".join(f"{index} : {balancer_table(node)}" for index, node in enumerate(nodes))
    return (
        f"  chain {name} {{\n"
        f"    meta mark set numgen inc mod {len(nodes)} map {{ {choices} }}\n"
        "    ct mark set meta mark\n"
        "  }"
    )
