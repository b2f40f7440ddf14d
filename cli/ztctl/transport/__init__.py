# SPDX-License-Identifier: Apache-2.0
"""How ztctl reaches an agent: local socket, port-forward or exec."""
