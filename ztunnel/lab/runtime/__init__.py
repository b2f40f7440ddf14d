# SPDX-License-Identifier: Apache-2.0
"""The lab's kubelet and container runtime: sandboxes, containers, probes, cgroups."""
