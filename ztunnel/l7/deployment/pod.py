# SPDX-License-Identifier: Apache-2.0
"""The pod of a gateway: one Envoy, without privileges or a service account token.

An ingress gateway mounts the Secret with its certificates, and may bind ports below 1024.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from ztunnel.l7.deployment.bootstrap import (
    READINESS_PATH,
    BootstrapSettings,
    bootstrap,
    drain_request,
    envoy_arguments,
)
from ztunnel.l7.deployment.quantities import quantity, worker_threads
from ztunnel.l7.deployment.service import GatewayPort
from ztunnel.l7.deployment.settings import (
    CONTAINER,
    DRAIN_S,
    GATEWAY_LABEL,
    GRACE_S,
    USER_ID,
    DeploymentSettings,
    Json,
)
from ztunnel.l7.names import (
    ADMIN_PORT,
    GATEWAY_CERTIFICATES_DIRECTORY,
    METRICS_PORT,
    READINESS_PORT,
)

CERTIFICATES_VOLUME = "certificates"
_KEY_MODE = 0o440  # for Envoy's group
# Users of ingress gateways. Each gateway has its own: the kernel limits inotify instances by user
# (fs.inotify.max_user_instances, 128), and Envoy aborts without one for each of its certificates.
_FIRST_USER, _USERS = 20_000, 40_000  # below 65536, the end of a pod's user namespace


def pod_spec(gateway: str, account: str, settings: DeploymentSettings) -> Json:
    """Return the spec of the pods of a gateway, `namespace/name`. Arguments follow the overlays."""
    name = gateway.rpartition("/")[2]
    return {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,  # the mesh identifies the pod by its sockets
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            _spread("kubernetes.io/hostname", name),
            _spread("topology.kubernetes.io/zone", name),
        ],
        "containers": [_container(settings)],
    }


def as_ingress(spec: Json, gateway: str, secret: str, host_ports: Sequence[GatewayPort]) -> Json:
    """Return a pod spec with what the ingress gateway `namespace/name` needs.

    `secret`: with its certificates; it may not exist yet. `host_ports`: to bind on the node.
    """
    volume = {
        "name": CERTIFICATES_VOLUME,
        "secret": {"secretName": secret, "optional": True, "defaultMode": _KEY_MODE},
    }
    mount = {
        "name": CERTIFICATES_VOLUME,
        "mountPath": GATEWAY_CERTIFICATES_DIRECTORY,
        "readOnly": True,
    }
    ports = [
        {
            "name": port.name[:15],  # IANA_SVC_NAME
            "containerPort": port.number,
            "hostPort": port.number,
            "protocol": port.transport.value,
        }
        for port in host_ports
    ]
    (container,) = spec["containers"]
    unprivileged = {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
    return {
        **spec,
        "securityContext": {
            **spec["securityContext"],
            "runAsUser": user_id(gateway),
            "fsGroup": USER_ID,
            "sysctls": [unprivileged],  # of the pod's network namespace; safe for every kubelet
        },
        "containers": [
            {**container, "ports": [*container["ports"], *ports], "volumeMounts": [mount]}
        ],
        "volumes": [volume],
    }


def user_id(gateway: str) -> int:
    """The user of the pods of an ingress gateway, `namespace/name`."""
    digest = hashlib.sha256(gateway.encode()).digest()
    return _FIRST_USER + int.from_bytes(digest[:8], "big") % _USERS


def with_arguments(spec: Json, gateway: str) -> Json:
    """Return the spec with Envoy's command line, which depends on the container's limits."""
    containers = []
    for container in spec["containers"]:
        limits = _mapping(_mapping(container.get("resources")).get("limits"))
        config = bootstrap(
            BootstrapSettings(
                gateway=gateway,
                node_id="$(POD_NAME).$(POD_NAMESPACE)",  # expanded by the kubelet
                address="$(POD_IP)",
                memory_bytes=int(quantity(limits.get("memory")) or 0),
            )
        )
        arguments = envoy_arguments(config, worker_threads(limits.get("cpu")))
        containers.append({**container, "args": arguments})
    return {**spec, "containers": containers}


def drain_command() -> list[str]:
    """The command that drains Envoy from inside its container; it returns when the drain is over.

    Needs bash, which can open a TCP connection: Envoy's admin interface accepts the drain by POST
    only, which the kubelet's httpGet cannot send, and listens on loopback only.
    """
    request = drain_request().decode().replace("\r\n", "\\r\\n")
    script = (
        f"exec 3<>/dev/tcp/127.0.0.1/{ADMIN_PORT} && printf '{request}' >&3 && cat <&3; "
        f"sleep {DRAIN_S}"
    )
    return ["bash", "-c", script]


def scrape_annotations() -> Mapping[str, str]:
    """Annotations for Prometheus; the node's `ztunnel gateway` serves the metrics in the pod."""
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(METRICS_PORT),
        "prometheus.io/path": "/metrics",
    }


def _spread(key: str, name: str) -> Json:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {GATEWAY_LABEL: name}},
    }


def _container(settings: DeploymentSettings) -> Json:
    pull = {"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {}
    return {
        "name": CONTAINER,
        "image": settings.proxy_image,
        **pull,
        "command": ["envoy"],
        "env": [
            _field("POD_NAME", "metadata.name"),
            _field("POD_NAMESPACE", "metadata.namespace"),
            _field("POD_IP", "status.podIP"),
        ],
        "ports": [
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
            {"name": "status-port", "containerPort": READINESS_PORT, "protocol": "TCP"},
        ],
        # no liveness probe: without a control plane, Envoy continues with what it has
        "readinessProbe": {
            "httpGet": {"path": READINESS_PATH, "port": READINESS_PORT, "scheme": "HTTP"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"exec": {"command": drain_command()}}},
        "resources": {
            "requests": {"cpu": settings.cpu_request, "memory": settings.memory_request},
            "limits": {"cpu": settings.cpu_limit, "memory": settings.memory_limit},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
    }


def _mapping(value: object) -> Json:
    """What an overlay of the wrong type becomes here; the API server rejects the object."""
    return value if isinstance(value, dict) else {}


def _field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
