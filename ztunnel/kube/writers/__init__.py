# SPDX-License-Identifier: Apache-2.0
"""Writes to the Kubernetes API: annotations, CSRs, token reviews."""
