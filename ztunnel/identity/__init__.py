# SPDX-License-Identifier: Apache-2.0
"""Workload identity: CA, certificate requests, signing and renewal."""
