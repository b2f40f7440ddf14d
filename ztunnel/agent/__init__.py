# SPDX-License-Identifier: Apache-2.0
"""The privileged process of a node: it captures pods and supplies the proxy's workers.

The agent carries no traffic. While it is down, the kernel and the proxy continue with their current
state.
"""
