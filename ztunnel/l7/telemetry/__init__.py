# SPDX-License-Identifier: Apache-2.0
"""Metrics, access logs and traces of a waypoint."""
