# SPDX-License-Identifier: Apache-2.0
"""A real Envoy that runs a compiled waypoint, with backends and a client; needs no root."""
