# SPDX-License-Identifier: Apache-2.0
"""Commands about waypoints: their routes, policies and Envoys."""
