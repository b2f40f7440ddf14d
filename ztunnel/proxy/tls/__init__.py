# SPDX-License-Identifier: Apache-2.0
"""TLS sessions and workload credentials."""
