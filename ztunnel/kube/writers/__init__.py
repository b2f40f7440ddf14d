# SPDX-License-Identifier: Apache-2.0
"""Writes to the Kubernetes API: pod annotations, Events, CSRs, token reviews."""
