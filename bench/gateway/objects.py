# SPDX-License-Identifier: Apache-2.0
"""The lab's objects for the benchmark. Pure, except that nginx's configuration is written.

node1   server-node1, the gateway, and the pods of the proxies outside the mesh
node2   server-node2
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.gateway.cases import PROXY_NODE, SERVERS
from bench.l7 import nginx
from bench.l7.objects import ENVOY_WORKERS, app_pod, manifest

GATEWAY, GATEWAY_CLASS = "gateway", "ztunnel"
DEPLOYMENT = f"{GATEWAY}-{GATEWAY_CLASS}"
CERTIFICATE = "certificate"  # a Secret
MESHED, PLAIN = "meshed", "plain"
_API = "gateway.networking.k8s.io/v1"
Object = dict[str, Any]


def all_objects(directory: Path, proxies: tuple[str, ...], certificate: Object) -> list[Object]:
    """Everything. `proxies`: names of the pods for proxies outside the mesh."""
    sleep = ["sleep", "infinity"]
    servers = [
        app_pod(MESHED, f"server-{node}", node, nginx.argv(directory / f"nginx-{MESHED}-{node}"))
        for node in SERVERS
    ]
    servers += [app_pod(PLAIN, f"server-{node}", node, sleep) for node in SERVERS]
    return [
        manifest("v1", "Namespace", MESHED, "", labels={"istio.io/dataplane-mode": "ambient"}),
        manifest("v1", "Namespace", PLAIN, ""),
        certificate,
        *servers,
        *(_service(node) for node in SERVERS),
        *(app_pod(PLAIN, name, PROXY_NODE, sleep) for name in proxies),
        *(_balancer(name) for name in proxies),
        *_gateway(),
        _route(),
    ]


def _gateway() -> list[Object]:
    container = {"name": "istio-proxy", "resources": {"limits": {"cpu": str(ENVOY_WORKERS)}}}
    pod = {"nodeSelector": {"kubernetes.io/hostname": PROXY_NODE}, "containers": [container]}
    options = {
        "deployment": json.dumps({"spec": {"template": {"spec": pod}}}),
        "service": json.dumps({"spec": {"externalTrafficPolicy": "Local"}}),
    }
    listeners = [
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {
            "name": "https",
            "port": 443,
            "protocol": "HTTPS",
            "tls": {"certificateRefs": [{"name": CERTIFICATE}]},
        },
    ]
    spec = {
        "gatewayClassName": GATEWAY_CLASS,
        "listeners": listeners,
        "infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "options"}},
    }
    return [
        manifest("v1", "ConfigMap", "options", MESHED, data=options),
        manifest(_API, "Gateway", GATEWAY, MESHED, spec=spec),
    ]


def _route() -> Object:
    rules = [
        {
            "matches": [{"path": {"type": "PathPrefix", "value": f"/{node}"}}],
            "backendRefs": [{"name": f"server-{node}", "port": 80}],
        }
        for node in SERVERS
    ]
    spec = {"parentRefs": [{"name": GATEWAY}], "rules": rules}
    return manifest(_API, "HTTPRoute", "servers", MESHED, spec=spec)


def _service(node: str) -> Object:
    port = {"name": "http", "port": 80, "targetPort": nginx.PORT, "appProtocol": "http"}
    spec = {"selector": {"app": f"server-{node}"}, "ports": [port]}
    return manifest("v1", "Service", f"server-{node}", MESHED, spec=spec)


def _balancer(proxy: str) -> Object:
    """A service like the gateway's."""
    ports = [{"name": f"p{number}", "port": number, "targetPort": number} for number in (80, 443)]
    spec = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "selector": {"app": proxy},
        "ports": ports,
    }
    return manifest("v1", "Service", proxy, PLAIN, spec=spec)
