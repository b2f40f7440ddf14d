# SPDX-License-Identifier: Apache-2.0
"""Ingress gateways under test: real Envoys, with clients that connect to their listeners."""
