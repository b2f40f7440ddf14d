# SPDX-License-Identifier: Apache-2.0
"""Same-node bypass and UDP: programs the BPF maps from cluster state and policy."""
