# SPDX-License-Identifier: Apache-2.0
"""Ports of the proxy's listeners inside a pod: Istio's numbers (istio/ztunnel, src/config.rs)."""

OUTBOUND = 15001  # outbound TCP connections are redirected to it
INBOUND = 15006  # inbound plaintext connections are redirected to it
HBONE = 15008  # peers connect HBONE tunnels to it
DNS = 15053  # DNS queries are redirected to it: TCP, and UDP together with the ports after it
DNS_SERVERS = 3  # UDP ports: one per name server that a socket queries at the same time
WAYPOINT = 15088  # of a waypoint's Envoy, on loopback: only the proxy's sockets may connect to it
XDS = 15010  # delta ADS of `ztunnel gateway`, on loopback in a gateway pod; istiod's number
GATEWAY_METRICS = 15020  # Envoy's statistics, served by `ztunnel gateway`; Istio's number
GATEWAY_READINESS = 15021  # Envoy's own `/healthz/ready`; Istio's number
GATEWAY_ADMIN = 15000  # Envoy's admin interface, on loopback; Istio's number
MESH = range(15000, 15100)  # no listener of a gateway may have them: numbers of Istio and the mesh
RESERVED = frozenset(
    (OUTBOUND, INBOUND, HBONE, DNS, WAYPOINT)
)  # rejected as destinations: they would cause a loop, or forge what the proxy states about clients
