# SPDX-License-Identifier: Apache-2.0
"""Transports to the admin sockets of a cluster's agents, through the API server."""
