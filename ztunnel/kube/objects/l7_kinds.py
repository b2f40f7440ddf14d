# SPDX-License-Identifier: Apache-2.0
"""The kinds that configure L7: Gateway API v1.6 (standard channel) and Istio 1.27."""

from __future__ import annotations

from typing import NamedTuple

GATEWAY_GROUP = "gateway.networking.k8s.io"
_GATEWAY_API = f"{GATEWAY_GROUP}/v1"
_NETWORKING = "networking.istio.io/v1"
_SECURITY = "security.istio.io/v1"
_TELEMETRY = "telemetry.istio.io/v1"
_EXTENSIONS = "extensions.istio.io/v1alpha1"

INGRESS_CLASSES = ("istio", "ztunnel")  # `istio`: unless its GatewayClass is istiod's
BACKEND_TLS_POLICY = "BackendTLSPolicy"
# Of BackendTLSPolicies, by the controller: the certificates that caCertificateRefs refer to, as PEM
CA_CERTIFICATES_ANNOTATION = "ztunnel.dev/ca-certificates"
# Of Gateways, by the controller: the usable files of the gateway's certificates, as a JSON object
# {"<id>.crt": hash, "<id>.ca": hash} with the first 16 hexadecimal digits of the content's SHA-256
GATEWAY_CERTIFICATES_ANNOTATION = "ztunnel.dev/gateway-certificates"
PROXY_CONFIG_ANNOTATION = "proxy.istio.io/config"  # of Gateways: Istio's ProxyConfig, as YAML
MAX_GATEWAY_ANNOTATION_CHARS = 16 << 10  # of the two above; 64 certificates take 4 KiB
MAX_CA_CERTIFICATES_CHARS = 64 << 10  # all annotations of an object have 256 KiB
NAMESPACE = "Namespace"  # its labels select whose routes attach to a listener


class KindInfo(NamedTuple):
    """The API of a kind. `plural` is the resource name in URLs."""

    api_version: str
    plural: str
    cluster_scoped: bool = False


L7_KINDS: dict[str, KindInfo] = {
    "GatewayClass": KindInfo(_GATEWAY_API, "gatewayclasses", cluster_scoped=True),
    "Gateway": KindInfo(_GATEWAY_API, "gateways"),
    "ListenerSet": KindInfo(_GATEWAY_API, "listenersets"),
    "HTTPRoute": KindInfo(_GATEWAY_API, "httproutes"),
    "GRPCRoute": KindInfo(_GATEWAY_API, "grpcroutes"),
    "TCPRoute": KindInfo(_GATEWAY_API, "tcproutes"),
    "TLSRoute": KindInfo(_GATEWAY_API, "tlsroutes"),
    "UDPRoute": KindInfo(_GATEWAY_API, "udproutes"),
    "ReferenceGrant": KindInfo(_GATEWAY_API, "referencegrants"),
    "BackendTLSPolicy": KindInfo(_GATEWAY_API, "backendtlspolicies"),
    "DestinationRule": KindInfo(_NETWORKING, "destinationrules"),
    "VirtualService": KindInfo(_NETWORKING, "virtualservices"),
    "EnvoyFilter": KindInfo("networking.istio.io/v1alpha3", "envoyfilters"),
    "AuthorizationPolicy": KindInfo(_SECURITY, "authorizationpolicies"),
    "RequestAuthentication": KindInfo(_SECURITY, "requestauthentications"),
    "Telemetry": KindInfo(_TELEMETRY, "telemetries"),
    "WasmPlugin": KindInfo(_EXTENSIONS, "wasmplugins"),
}
# Kinds in a store of L7 objects: of namespaces, the labels.
STORED_KINDS = {**L7_KINDS, NAMESPACE: KindInfo("v1", "namespaces", cluster_scoped=True)}
