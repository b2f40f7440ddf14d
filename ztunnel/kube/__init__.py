# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes says, kept in step as the mesh's workloads and services.

    fields ──▶ translate ──▶ mirror ◀── directory (or, in a cluster, informers)

Sources call `Mirror.upsert` and `Mirror.delete`; the agent takes `Mirror.drain` to its workers.
"""
