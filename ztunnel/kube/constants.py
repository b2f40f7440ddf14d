# SPDX-License-Identifier: Apache-2.0
"""Names that agent, signer and installation agree on."""

from __future__ import annotations

SIGNER_NAME = "ztunnel.dev/workload"  # spec.signerName of our requests
ROOTS_CONFIGMAP = "istio-ca-root-cert"  # Istio's name: what reads it there reads it here
ROOTS_KEY = "root-cert.pem"
PLUGGED_CA = "cacerts"  # Istio's name of the Secret with an operator's own CA
SELF_MADE_CA = "ztunnel-ca"
NAMESPACE = "ztunnel-system"
AGENT_ACCOUNT = "ztunnel-agent"
SIGNER_ACCOUNT = "ztunnel-controller"
LEASE = "ztunnel-controller"
NODE_EXTRA = "authentication.kubernetes.io/node-name"  # set by the API server from the token
USAGES = ("digital signature", "server auth", "client auth")  # certificates.k8s.io/v1


def user_of(namespace: str, account: str) -> str:
    """A service account as a requester's user name."""
    return f"system:serviceaccount:{namespace}:{account}"
