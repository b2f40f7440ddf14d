# SPDX-License-Identifier: Apache-2.0
"""What ztctl reads and changes on this machine without the agent: requirements, pinned BPF maps."""
