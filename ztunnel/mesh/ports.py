# SPDX-License-Identifier: Apache-2.0
"""Ports of the proxy's listeners inside a pod: Istio's numbers (istio/ztunnel, src/config.rs)."""

OUTBOUND = 15001  # outbound TCP connections are redirected to it
INBOUND = 15006  # inbound plaintext connections are redirected to it
HBONE = 15008  # peers connect HBONE tunnels to it
DNS = 15053  # DNS queries are redirected to it: TCP, and UDP together with the ports after it
DNS_SERVERS = 3  # UDP ports: one per name server that a socket queries at the same time
RESERVED = frozenset(
    (OUTBOUND, INBOUND, HBONE, DNS)
)  # rejected as destinations: they would cause a loop
