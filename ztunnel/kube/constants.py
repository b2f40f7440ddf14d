# SPDX-License-Identifier: Apache-2.0
"""Names shared by agent, controller, ztctl and the manifests in deploy/."""

from __future__ import annotations

SIGNER_NAME = "ztunnel.dev/workload"  # spec.signerName of our CertificateSigningRequests
FIELD_MANAGER = "ztunnel-controller"  # of server-side apply
ROOTS_CONFIGMAP = "istio-ca-root-cert"  # Istio's name: software that reads it works unchanged
ROOTS_KEY = "root-cert.pem"
PLUGGED_CA = "cacerts"  # Istio's name of the Secret with the operator's CA
SELF_SIGNED_CA = "ztunnel-ca"
NAMESPACE = "ztunnel-system"
AGENT_ACCOUNT = "ztunnel-agent"
LEASE = "ztunnel-controller"
NODE_EXTRA = "authentication.kubernetes.io/node-name"  # set by the API server from the token
USAGES = ("digital signature", "server auth", "client auth")  # certificates.k8s.io/v1


def service_account_user(namespace: str, account: str) -> str:
    """The user name of a service account."""
    return f"system:serviceaccount:{namespace}:{account}"
