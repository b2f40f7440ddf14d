# SPDX-License-Identifier: Apache-2.0
"""Traffic policies: DestinationRule, BackendTLSPolicy, VirtualService."""
