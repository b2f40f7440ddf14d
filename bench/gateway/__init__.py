# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ingress gateways: `python -m bench.gateway`."""
