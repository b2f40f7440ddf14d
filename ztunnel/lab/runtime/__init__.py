# SPDX-License-Identifier: Apache-2.0
"""The lab's container runtime: cgroups, sandboxes, containers, probes."""
