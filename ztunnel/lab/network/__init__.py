# SPDX-License-Identifier: Apache-2.0
"""The lab's wires: address plan, namespaces, links, kube-proxy rules."""
