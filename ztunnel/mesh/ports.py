# SPDX-License-Identifier: Apache-2.0
"""The ports we take inside a pod, Istio's own (istio/ztunnel src/config.rs)."""

OUTBOUND = 15001  # where an app's connections are redirected to
INBOUND = 15006  # where plaintext from outside is taken
HBONE = 15008  # where peers bring tunnels
DNS = 15053  # where an app's queries are redirected to: TCP, and UDP with the ports after it
DNS_SERVERS = 3  # UDP ports: one for each name server that a socket asks at once
OURS = frozenset((OUTBOUND, INBOUND, HBONE, DNS))  # no legal destination: it would be a loop
