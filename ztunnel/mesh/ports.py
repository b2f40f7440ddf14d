# SPDX-License-Identifier: Apache-2.0
"""The ports we take inside a pod, Istio's own (istio/ztunnel src/config.rs). Imports nothing."""

OUTBOUND = 15001  # where an app's connections are redirected to
INBOUND = 15006  # where plaintext from outside is taken
HBONE = 15008  # where peers bring tunnels
OURS = frozenset((OUTBOUND, INBOUND, HBONE))  # no legal destination: it would be a loop
