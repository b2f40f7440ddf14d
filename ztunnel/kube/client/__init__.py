# SPDX-License-Identifier: Apache-2.0
"""Kubernetes API client: credentials, requests, list and watch."""
