# SPDX-License-Identifier: Apache-2.0
"""The lab's network: address plan, namespaces and links."""
