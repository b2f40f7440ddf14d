# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration, as given on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from ztunnel.ipc.messages import DEFAULT_ACCESS_LINES_PER_S
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN
from ztunnel.mesh.selectors import Selector


class SameNode(StrEnum):
    """How connections between pods of this node travel once the proxy has authorized the pair."""

    DIRECT = "direct"  # without the proxy, until a policy or a pod changes
    ENCRYPT = "encrypt"  # always through the proxy, with mTLS


@dataclass(frozen=True)
class Options:
    """`cgroup` is where the BPF programs are attached; the node's pods live below it. None stands
    for the cgroup v2 root.

    The configuration of the mesh comes from the API server that `access` configures, or from
    `manifests`. Certificates come from a CA in `ca_dir`, or from the controller behind `access`,
    which publishes its roots in `namespace`.
    """

    node: str
    manifests: Path | None
    cgroup: Path | None
    pin_dir: Path
    run_dir: Path
    ca_dir: Path | None
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    certificate_ttl: timedelta = timedelta(hours=24)
    proxy_uid: int = 15008
    gateway_uid: int = 15010
    same_node: SameNode = SameNode.DIRECT
    metrics_port: int = 15020  # 0: disabled
    health_port: int = 15021  # 0: disabled
    metrics_bind_address: str = ""  # of both ports; empty: all addresses
    max_series: int = 5000  # of one metric
    access_log_rate: int = DEFAULT_ACCESS_LINES_PER_S  # of each process; 0: no limit
    series_ttl_s: float = 300.0  # after the workload is deleted
    bpf_stats: bool = False
    access: Access | None = None
    namespace: str = NAMESPACE
    pod_name: str = ""  # the agent's own; enables the remote admin port
    discovery: tuple[Selector, ...] = ()  # empty: all namespaces
    registry_only: bool = False
    cri_socket: str = "auto"  # or "none", or a path on the host
    root_namespace: str = DEFAULT_ROOT_NAMESPACE

    @property
    def agent_socket(self) -> Path:
        """The socket that workers dial."""
        return self.run_dir / "agent.sock"

    @property
    def gateway_socket(self) -> Path:
        """The socket that the gateway process dials."""
        return self.run_dir / "gateway.sock"

    @property
    def admin_socket(self) -> Path:
        """The socket of the admin API."""
        return self.run_dir / "admin.sock"
