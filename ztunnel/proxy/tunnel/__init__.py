# SPDX-License-Identifier: Apache-2.0
"""HBONE tunnels: pool, relay and datagrams."""
