# SPDX-License-Identifier: Apache-2.0
"""Netlink without pyroute2, which costs the agent 8 to 16 MB (decision 0027)."""
