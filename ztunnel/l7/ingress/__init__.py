# SPDX-License-Identifier: Apache-2.0
"""Ingress gateways: their listeners, the routes that attach, and Envoy's configuration."""
