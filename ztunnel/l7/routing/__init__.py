# SPDX-License-Identifier: Apache-2.0
"""Listeners, routes, clusters and endpoints of a waypoint."""
