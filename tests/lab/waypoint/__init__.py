# SPDX-License-Identifier: Apache-2.0
"""Waypoints in a lab: real Envoys, driven by the agents and gateway processes of the lab."""
