# SPDX-License-Identifier: Apache-2.0
"""Netlink: the node's addresses, and sock_diag."""
