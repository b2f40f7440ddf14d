# SPDX-License-Identifier: Apache-2.0
"""Tracks the connections that a worker carries, and re-authorizes them."""
