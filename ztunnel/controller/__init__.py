# SPDX-License-Identifier: Apache-2.0
"""The cluster's control plane: issues workload certificates, publishes roots, reports on policies.

It talks to the API server only; it needs no access to nodes.
"""
