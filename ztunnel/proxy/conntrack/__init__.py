# SPDX-License-Identifier: Apache-2.0
"""Tracks a worker's connections, and re-authorizes them after a policy change."""
