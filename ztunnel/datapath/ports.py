# SPDX-License-Identifier: Apache-2.0
"""The ports we take inside a pod (Istio's own: istio/ztunnel src/config.rs). Imports nothing."""

OUTBOUND = 15001
INBOUND = 15006
HBONE = 15008
