# SPDX-License-Identifier: Apache-2.0
"""What the agent is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN
from ztunnel.mesh.selectors import Selector


class SameNode(StrEnum):
    """How pods of this node speak to each other once the proxy has let one in at the other."""

    DIRECT = "direct"  # without the proxy, while nothing changes
    ENCRYPT = "encrypt"  # always through it, by mTLS


@dataclass(frozen=True)
class Options:
    """`cgroup` is where the hooks are attached and below which the pods of the node live; None is
    the cgroup v2 root, if the node has one.

    The cluster is learnt of from the API server that `access` leads to, else from `manifests`.
    Certificates come from a CA in `ca_dir`, else from the signer behind `access`, whose roots are
    in `namespace`.
    """

    node: str
    manifests: Path | None
    cgroup: Path | None
    pin_dir: Path
    run_dir: Path
    ca_dir: Path | None
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    certificate_ttl: timedelta = timedelta(hours=24)
    proxy_uid: int = 1337
    same_node: SameNode = SameNode.DIRECT
    metrics_port: int = 15020  # 0: none
    health_port: int = 15021  # 0: none
    listen: str = ""  # address of both; empty: all
    most_series: int = 5000  # of one metric
    retire_after: float = 300.0  # seconds that series of a workload that is gone stay
    bpf_stats: bool = False
    access: Access | None = None
    namespace: str = NAMESPACE
    pod: str = ""  # the agent's own, in `namespace`: asked by port-forward too, if it is named
    discovery: tuple[Selector, ...] = ()  # empty: all namespaces
    registry_only: bool = False
    cri_socket: str = "auto"  # of the container runtime; a path on the host, or none
    root_namespace: str = DEFAULT_ROOT_NAMESPACE  # whose policies are the whole mesh's

    @property
    def agent_socket(self) -> Path:
        """Where workers dial."""
        return self.run_dir / "agent.sock"

    @property
    def admin_socket(self) -> Path:
        """Where ztctl asks."""
        return self.run_dir / "admin.sock"
