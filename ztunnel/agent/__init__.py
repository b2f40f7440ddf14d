# SPDX-License-Identifier: Apache-2.0
"""The node's one privileged process: it captures pods, and serves the proxy what it needs.

Carries no traffic itself: while it is away everything goes on with what the kernel and the proxy
hold.
"""
