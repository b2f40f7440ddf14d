# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Ingress objects as objects of the Gateway API."""
