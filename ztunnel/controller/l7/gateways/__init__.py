# SPDX-License-Identifier: Apache-2.0
"""Runs Gateways: their objects, their certificates, and the facts of their status."""
