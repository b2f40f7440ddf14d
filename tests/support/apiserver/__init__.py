# SPDX-License-Identifier: Apache-2.0
"""A real API server for tests and benchmarks: server, credentials, objects, control plane."""
