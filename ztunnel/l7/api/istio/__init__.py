# SPDX-License-Identifier: Apache-2.0
"""Parsers of Istio's APIs for traffic and telemetry."""
