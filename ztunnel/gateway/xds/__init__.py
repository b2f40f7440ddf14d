# SPDX-License-Identifier: Apache-2.0
"""Envoy's API and the delta variant of its aggregated discovery service (ADS)."""
