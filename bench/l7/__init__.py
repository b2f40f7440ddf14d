# SPDX-License-Identifier: Apache-2.0
"""Benchmark of waypoints: `python -m bench.l7`."""
