# SPDX-License-Identifier: Apache-2.0
"""The embedded lab: a small cluster of network namespaces on one machine, without Kubernetes.

The lab emulates the API server, scheduler, kubelet, endpoint controller, kube-proxy and cluster
DNS. The agents and proxies on its nodes are the real ones. `Lab` is its Python interface, which
the tests use, and `ztctl lab` its command line.
"""

from ztunnel.lab.admin_client import admin_get
from ztunnel.lab.errors import LabError
from ztunnel.lab.lab import READY_TIMEOUT_S, Lab, demo_manifests
from ztunnel.lab.network import netns
from ztunnel.lab.objects import key_of, read_manifests

__all__ = [
    "READY_TIMEOUT_S",
    "Lab",
    "LabError",
    "admin_get",
    "demo_manifests",
    "key_of",
    "netns",
    "read_manifests",
]
