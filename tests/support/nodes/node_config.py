# SPDX-License-Identifier: Apache-2.0
"""Configuration of the programs of a node: files for containerd, CNI, kubelet and kube-proxy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

PAUSE = "ztunnel.test/pause:1"
PODS = "10.244.0.0/16"  # the pods of all nodes
CLUSTER_DNS, CLUSTER_DOMAIN = "10.96.0.10", "cluster.local"
_LIMITS = {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi"}


@dataclass(frozen=True)
class Settings:
    """The configuration of one node. `directory` is its own; `pods` is the network of its pods."""

    name: str
    directory: Path
    cgroup: str
    pods: str
    client_ca: Path

    def files(self) -> dict[str, str]:
        """All files, by path below `directory`."""
        return {
            "containerd.toml": self._containerd(),
            "cni/10-pods.conflist": self._network(),
            "kubelet.yaml": yaml.safe_dump(self._kubelet()),
            "kube-proxy.yaml": yaml.safe_dump(self._kube_proxy()),
        }

    def _containerd(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""version = 2
root = "{self.directory}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[{cri}]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{self.directory}/cni"
"""

    def _network(self) -> str:
        return f"""{{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{{
    "type": "ptp",
    "ipam": {{
      "type": "host-local",
      "dataDir": "{self.directory}/ipam",
      "ranges": [[{{"subnet": "{self.pods}"}}]],
      "routes": [{{"dst": "0.0.0.0/0"}}]
    }}
  }}, {{
    "type": "portmap",
    "capabilities": {{"portMappings": true}}
  }}]
}}
"""

    def _kubelet(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.client_ca)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "clusterDNS": [CLUSTER_DNS],
            "clusterDomain": CLUSTER_DOMAIN,
            "enforceNodeAllocatable": ["pods"],
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failSwapOn": False,
            "failCgroupV1": False,
            # may lack the privilege to lower its OOM score and to write sysctls, as here
            "featureGates": {"KubeletInUserNamespace": True},
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "evictionHard": _LIMITS,
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": False,
            "resolvConf": "/dev/null",
            "volumePluginDir": str(self.directory / "plugins"),
            "podLogsDir": str(self.directory / "pods"),
            "syncFrequency": "5s",
            "nodeStatusUpdateFrequency": "5s",
        }

    def _kube_proxy(self) -> dict[str, object]:
        login = {"kubeconfig": str(self.directory / "kube-proxy.kubeconfig")}
        # the conntrack table is shared by the whole machine: leave its size as it is
        none = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s"}
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": login,
            "clusterCIDR": PODS,
            "hostnameOverride": self.name,
            "conntrack": {**none, "tcpCloseWaitTimeout": "0s"},
            "nodePortAddresses": ["primary"],
            "oomScoreAdj": 0,
        }
