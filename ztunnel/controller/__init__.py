# SPDX-License-Identifier: Apache-2.0
"""The cluster's signer: certifies workloads through Kubernetes' certificates.k8s.io.

Knows the API server, nothing of sockets or the kernel.
"""
