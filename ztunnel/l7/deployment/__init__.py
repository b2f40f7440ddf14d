# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes objects that run a Gateway, and Envoy's bootstrap."""
