# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: API client, sources of objects, their translation, and the resulting cluster view.

    sources (API server, or a directory of manifests) ──▶ view ──▶ drain(): changes for the workers
       │                                                   │
     client (list, watch, requests)                      objects (translation)

`writers` update annotations, Events and CertificateSigningRequests.
"""
