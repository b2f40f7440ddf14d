# SPDX-License-Identifier: Apache-2.0
"""The mesh model and the decisions on it: pure, without I/O, clock or Kubernetes client."""
