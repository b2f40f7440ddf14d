# SPDX-License-Identifier: Apache-2.0
"""Serves the DNS queries of enrolled pods, and forwards those for names outside the mesh."""
