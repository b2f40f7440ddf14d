# SPDX-License-Identifier: Apache-2.0
"""Descriptions for names that the generators find in the code. A found name without a description
renders as UNDESCRIBED, which `scripts/docs check` reports."""

from __future__ import annotations

EVENTS = {
    "MeshCaptureRefused": "The pod requested enrollment but can never be captured (host network, "
    "sidecar). The message contains a hint.",
    "MeshAnnotationRejected": "The API server rejects the annotation of a captured pod, for "
    "example because its other annotations leave no room; peers do not use HBONE for it.",
    "MeshPodInvalid": "A field of an enrolled pod is invalid. The message states the effect, for "
    "example that all connections to the pod are denied because its labels are too large.",
    "MeshCaptureBypassable": "An enrolled pod has privileges with which it can send traffic "
    "past the mesh, for example NET_ADMIN. The message names the containers.",
    "MeshCaptureFailed": "The pod has not been captured for 15 s, or the node cannot run the data "
    "path at all. The message contains the cause and a hint.",
    "MeshCertificateBlocked": "The pod's service account has been missing for 15 s; the agent "
    "requests no certificate for it.",
    "MeshConfigurationProblem": "A field of a route or policy is not honoured as written. The "
    "message names the field and the effect.",
    "MeshIngressInvalid": "A part of an Ingress is not honoured, or an object that serves it "
    "cannot be applied. The message names the field.",
    "MeshGatewayInvalid": "A Gateway of a waypoint class is not accepted; its condition Accepted "
    "has the same message.",
}

POD_ERRORS = {
    "NetnsNotFound": "Neither the container runtime nor the pod's cgroup leads to its network "
    "namespace yet.",
    "HostNetns": "The namespace found is the node's own. The agent never captures it.",
    "WorkerNotReady": "The listeners exist, but no worker has confirmed the pod yet.",
    "NotServed": "The pod is captured, but no worker serves it: its connections are refused.",
    "NotRedirected": "The kernel does not redirect the pod's connections yet.",
    "InboundNotRedirected": "`zt_sk_lookup` is not attached to the pod's namespace yet.",
    "KernelError": "A system call or map update failed; the message contains the error.",
    "PortInUse": "A process in the pod listens on one of the mesh's ports.",
    "ListenError": "A listener could not be created in the pod; the message contains the error.",
}

FLAGS = {
    "-": "No failure: the connection ended in order, or was reset after it was established.",
    "DENY": "Denied by policy, here or at the destination; also a live connection that a policy "
    "change terminated.",
    "CONNECT": "The destination could not be reached: refused, no answer, no endpoint, or the app "
    "closed first.",
    "TLS_FAILURE": "No TLS session: certificate, version, or the peer disconnected.",
    "H2_HANDSHAKE_FAILURE": "TLS was established, but the peer never sent HTTP/2.",
    "IDENTITY_ERROR": "No certificate of our own yet, or the peer has another identity than "
    "expected.",
}

# BPF counters without a comment in the sources.
COUNTERS = {
    "redirected": "TCP connections redirected to the proxy.",
    "udp_redirected": "Datagrams and connects redirected to a worker.",
}
EXPOSED_AS = {"udp_refused": "udp_no_worker"}  # counter in the sources → in metrics and status

CSR_REASONS = {
    "PodRunsOnNode": "Approved: a pod of the service account runs on the requester's node.",
    "RequesterNotAgent": "The requester is not the agent's service account.",
    "TokenNotBoundToNode": "The requester's token is not bound to a pod on a node.",
    "UsagesNotAllowed": "The request does not have exactly the usages digital signature, server "
    "auth and client auth.",
    "RequestNotAllowed": "The request asks for more than, or something other than, one SPIFFE ID "
    "for a P-256 key.",
    "ForeignTrustDomain": "Agent and controller have different trust domains.",
    "NoSuchPodOnNode": "No pod of that service account runs on the requester's node.",
    "PodOnHostNetwork": "All pods of that service account on the node use the host network.",
    "NoSuchServiceAccount": "A pod of the service account runs on the node, but the account does "
    "not exist or is being deleted.",
}

# Name → (object, meaning).
LABELS = {
    "ambient.istio.io/redirection": (
        "Pod annotation, written by the agent",
        "`enabled`: the pod is captured; peers use HBONE to reach it.",
    ),
    "ambient.ztunnel.dev/capacity": (
        "Pod annotation",
        "Relative weight in load balancing, 1 or more.",
    ),
    "app.kubernetes.io/name": ("Pod label", "Canonical service, if no Istio label is set."),
    "app.kubernetes.io/version": ("Pod label", "Canonical revision, if no Istio label is set."),
    "authentication.kubernetes.io/node-name": (
        "CSR `spec.extra`, set by the API server",
        "Node that the requester's token is bound to.",
    ),
    "app.kubernetes.io/managed-by": (
        "Objects of a gateway",
        "`ztunnel-controller`: the controller applies and deletes the object.",
    ),
    "gateway.networking.k8s.io/gateway-class-name": (
        "Pods and Service of a gateway, set by the controller",
        "Class of the Gateway that they belong to.",
    ),
    "gateway.networking.k8s.io/bundle-version": (
        "Annotation of the CRDs of the Gateway API",
        "Their version, which the condition SupportedVersion of GatewayClasses is about.",
    ),
    "gateway.networking.k8s.io/gateway-name": (
        "Pods and Service of a gateway, set by the controller",
        "Gateway that they belong to.",
    ),
    "networking.istio.io/enable-autoallocate-ip": (
        "ServiceEntry label",
        "`false`: no virtual addresses are allocated for its hosts. Default: `true`.",
    ),
    "istio.io/use-waypoint": (
        "Namespace, Service, pod or ServiceEntry label",
        "Gateway that connections to the object pass; `none` opts out.",
    ),
    "istio.io/ingress-use-waypoint": (
        "Namespace, Service or ServiceEntry label",
        "`true`: ingress gateways reach the service through its waypoint. Default: the namespace's "
        "label, else `false`.",
    ),
    "istio.io/use-waypoint-namespace": (
        "Namespace, Service, pod or ServiceEntry label",
        "Namespace of that Gateway.  Default: the object's own.",
    ),
    "istio.io/waypoint-for": (
        "Gateway or GatewayClass label",
        "Traffic that the waypoint accepts: `service` (default), `workload`, `all` or `none`.",
    ),
    "istio.io/WaypointBound": (
        "Service and ServiceEntry condition, written by the controller",
        "Whether connections pass the requested waypoint, and why not.",
    ),
    "istio.io/dataplane-mode": (
        "Namespace or pod label",
        "`ambient` enrolls; `none` on a pod opts out.",
    ),
    "istio.io/dry-run": (
        "AuthorizationPolicy annotation",
        "`true`: the policy is evaluated and logged but not enforced.",
    ),
    "kubernetes.io/service-name": ("EndpointSlice label", "Service that the slice belongs to."),
    "networking.istio.io/tunnel": (
        "Pod label, set by Istio's injection",
        "`http`: the pod's sidecar accepts HBONE.",
    ),
    "proxy.istio.io/config": (
        "Gateway annotation",
        "Istio's ProxyConfig as YAML; `gatewayTopology` of ingress gateways is used.",
    ),
    "networking.istio.io/service-type": (
        "Gateway annotation",
        "Type of an ingress gateway's Service: `LoadBalancer` (default), `NodePort` or "
        "`ClusterIP`.",
    ),
    "service.istio.io/canonical-name": ("Pod label", "Canonical service in metrics."),
    "service.istio.io/canonical-revision": ("Pod label", "Canonical revision in metrics."),
    "sidecar.istio.io/status": (
        "Pod annotation, set by Istio's injection",
        "The pod has a sidecar; the agent does not capture it.",
    ),
    "topology.kubernetes.io/region": ("Pod label", "Region in the `baggage` header."),
    "topology.kubernetes.io/zone": ("Pod label", "Zone in the `baggage` header."),
    "ztunnel.dev/admin": (
        "Agent pod annotation, written by the agent",
        "Port and certificate digest of the agent's admin API.",
    ),
    "ztunnel.dev/ca-certificates": (
        "BackendTLSPolicy annotation, written by the controller",
        "Certificates in PEM of the ConfigMaps in `caCertificateRefs`.",
    ),
    "ztunnel.dev/rejected-config": (
        "Gateway pod annotation, written by the agent",
        "JSON: resources that the pod's Envoy rejects, with its messages.",
    ),
    "ztunnel.dev/require-waypoint": (
        "Namespace, Service or pod label or annotation",
        "Every value but `false`: only the waypoint may connect to the pods.",
    ),
    "ztunnel.dev/ingress": (
        "HTTPRoute and ListenerSet label, written by the controller",
        "`true`: made for an Ingress. The controller replaces changes.",
    ),
    "ztunnel.dev/gateway-certificates": (
        "Gateway annotation, written by the controller",
        "JSON object: usable certificate files of the gateway's pods, to digests. No keys.",
    ),
    "ztunnel.dev/certificates-revision": (
        "Gateway pod annotation, written by the controller",
        "Digest of the gateway's certificates; its change makes the kubelet mount them at once.",
    ),
    "ztunnel.dev/http3": (
        "Gateway annotation",
        "`true`: HTTPS listeners of the ingress gateway also serve HTTP/3.",
    ),
    "ztunnel.dev/gateway-host-ports": (
        "Gateway annotation",
        "`true`: the pods of the ingress gateway, a DaemonSet, bind the listeners' ports on their "
        "nodes.",
    ),
    "ztunnel.dev/gateway-workload": (
        "Gateway annotation",
        "What runs an ingress gateway: `Deployment` (default) or `DaemonSet`.",
    ),
    "ztunnel.dev/expiring-roots": (
        "ConfigMap annotation, written by the controller",
        "JSON object: SHA-256 of a root that is being phased out, to the Unix time of its removal.",
    ),
}

NOT_LABELS = frozenset(
    {"ztunnel.dev/workload", "ztunnel.dev/waypoint-controller", "ztunnel.dev/gateway-controller"}
)  # the names of a signer and of the controllers of GatewayClasses

# Options in the pages that belong to other programs.
FOREIGN_OPTIONS = frozenset(
    (
        "--bind-interfaces",
        "--config-yaml",
        "--contenders",
        "--field-selector",
        "--force",
        "--from-file",
        "--group",
        "--help",
        "--keep",
        "--net",
        "--only",
        "--path",
        "--privileged",
        "--provider",
        "--replay",
        "--role",
        "--rounds",
        "--runs",
        "--seconds",
        "--seed",
        "--server-side",
        "--strict",
        "--unix-socket",
        "--version",
    )
)

WRITTEN_FILES = frozenset(
    {"bench/results.json", "bench/l7-results.json", "bench/gateway-results.json"}
)  # made by a run
