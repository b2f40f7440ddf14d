# SPDX-License-Identifier: Apache-2.0
"""Translates Kubernetes and Istio objects into the mesh's model. Pure."""
