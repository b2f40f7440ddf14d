# SPDX-License-Identifier: Apache-2.0
"""Workload identity: the CA, certificate requests, signing and rotation.

Knows X.509 and SPIFFE ids, nothing of pods or sockets.
"""
