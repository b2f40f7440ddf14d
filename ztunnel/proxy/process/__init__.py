# SPDX-License-Identifier: Apache-2.0
"""The proxy's processes: supervisor, privileges, heartbeats, and health endpoints."""
