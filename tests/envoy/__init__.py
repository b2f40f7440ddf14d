# SPDX-License-Identifier: Apache-2.0
"""Compiled configurations in a real Envoy."""
