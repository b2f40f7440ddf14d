# SPDX-License-Identifier: Apache-2.0
"""The configuration of a kubelet without an API server."""

from __future__ import annotations

from tests.node.runtime_nodes.runtimes import Runtime


def configuration(
    runtime: Runtime, driver: str, cgroup_root: str, manifests: str
) -> dict[str, object]:
    """A KubeletConfiguration with the defaults that a node inside a machine can have."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "enableServer": False,
        "staticPodPath": manifests,
        "cgroupDriver": driver,
        "cgroupRoot": cgroup_root,
        "enforceNodeAllocatable": ["pods"],
        "containerRuntimeEndpoint": f"unix://{runtime.socket}",
        "cpuCFSQuota": False,  # needs a kernel with CONFIG_CFS_BANDWIDTH
        "failSwapOn": False,
        "failCgroupV1": False,
        # may lack the privilege to lower its OOM score and to write sysctls
        "featureGates": {"KubeletInUserNamespace": True},
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "evictionHard": {f"{name}.available": "1Mi" for name in ("memory", "nodefs", "imagefs")},
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,
        "resolvConf": "/dev/null",
        "volumePluginDir": "/var/lib/kubelet/plugins-exec",
        "podLogsDir": "/var/log/pods",
    }
