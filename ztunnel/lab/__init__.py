# SPDX-License-Identifier: Apache-2.0
"""The embedded lab: a small cluster of network namespaces on one machine, no Kubernetes needed.

The lab plays API server, scheduler, kubelet, endpoint controller, kube-proxy and cluster DNS; the
agents and proxies it starts on its nodes are the real ones.
`ztctl lab` is its command line, `Lab` its Python interface (the system tests use it).
"""

from ztunnel.lab.errors import LabError
from ztunnel.lab.lab import Lab

__all__ = ["Lab", "LabError"]
