# SPDX-License-Identifier: Apache-2.0
"""Translates Kubernetes and Istio objects into mesh model values."""
