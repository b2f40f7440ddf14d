# SPDX-License-Identifier: Apache-2.0
"""Ingress gateways in a lab: real Envoys, and clients outside the cluster."""
