# SPDX-License-Identifier: Apache-2.0
"""An ingress gateway in front of two versions of an app, and clients outside the cluster.

outside ─▶ load balancer ─▶ node ─▶ gateway (HTTP 80, HTTPS 443) ─▶ my-app v1 node1, v2 node2
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.helpers.harness import APPS, named
from tests.lab.waypoint import shop
from tests.lab.waypoint.shop import SHOP, VERSIONS, Object
from tests.lab.waypoint.traffic import Response, Result, running_load
from ztunnel.lab import Lab
from ztunnel.lab.server_certificates import ROOT_FILE, tls_secret

API = "gateway.networking.k8s.io/v1"
GATEWAY = "web"
DEPLOYMENT = f"{GATEWAY}-ztunnel"  # and the Service
HOST = "my-app.example"
CERTIFICATE = "my-app-tls"  # a Secret
HTTP, HTTPS = 80, 443

_GET_CERTIFICATE = """
import socket, ssl, sys
root, address, name = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
with socket.create_connection((address, 443), 5) as connection:
    with context.wrap_socket(connection, server_hostname=name) as tls:
        print(ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)))
"""


def objects() -> list[Object]:
    """Everything except the certificate and the route."""
    space = named("Namespace", SHOP)
    space["metadata"]["labels"] = {"istio.io/dataplane-mode": "ambient"}
    servers = [shop.server(version, node) for version, node in VERSIONS.items()]
    services = [
        shop.service("my-app"),
        *(shop.service(f"my-app-{version}", version=version) for version in VERSIONS),
    ]
    return [space, named("ServiceAccount", "my-app", SHOP), *servers, *services, *gateway()]


def gateway(*listeners: Object, **infrastructure: Any) -> list[Object]:
    """The Gateway and its parameters. `listeners`: besides those for HTTP and HTTPS."""
    limits = {"resources": {"limits": {"cpu": "1"}}}
    template = {"spec": {"containers": [{"name": "istio-proxy", **limits}]}}
    options = {
        "deployment": json.dumps({"spec": {"template": template}}),
        "service": json.dumps({"spec": {"externalTrafficPolicy": "Local"}}),
    }
    spec = {
        "gatewayClassName": "ztunnel",
        "listeners": [{"name": "http", "port": HTTP, "protocol": "HTTP"}, https(), *listeners],
        "infrastructure": {
            "parametersRef": {"group": "", "kind": "ConfigMap", "name": "web-options"},
            **infrastructure,
        },
    }
    return [
        shop.obj("v1", "ConfigMap", "web-options", data=options),
        shop.obj(API, "Gateway", GATEWAY, spec=spec),
    ]


def https(name: str = "https", host: str = HOST, certificate: str = CERTIFICATE) -> Object:
    """A listener for HTTPS."""
    tls = {"certificateRefs": [{"name": certificate}]}
    return {"name": name, "hostname": host, "port": HTTPS, "protocol": "HTTPS", "tls": tls}


def route(version: str, name: str = "my-app", host: str = HOST) -> Object:
    """A route of all requests to a version of the app."""
    spec = {
        "parentRefs": [{"name": GATEWAY}],
        "hostnames": [host],
        "rules": [{"backendRefs": [shop.backend(version)]}],
    }
    return shop.obj(API, "HTTPRoute", name, spec=spec)


class Storefront:
    """The lab. `directory`: of the CA that clients trust."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self._directory = directory

    @property
    def root_file(self) -> Path:
        """The certificate that clients trust."""
        return self._directory / ROOT_FILE

    def certificate(self, name: str = CERTIFICATE, host: str = HOST) -> Object:
        """A Secret with a new certificate."""
        return tls_secret(self._directory, name, SHOP, [host])

    def address(self, family: int = 4) -> str:
        """The address of the gateway's load balancer."""
        status = self.lab.get("Service", DEPLOYMENT, SHOP)["status"]
        ips = [str(entry["ip"]) for entry in status["loadBalancer"]["ingress"]]
        return next(ip for ip in ips if (":" in ip) == (family == 6))

    def get(
        self, url: str, *options: str, address: str = "", family: int = 4, timeout_s: float = 5
    ) -> Response:
        """A request with curl from outside; status 0 if there is no response.

        The host of the URL is at `address`, by default at the load balancer.
        """
        scheme, _, rest = url.partition("://")
        host = rest.partition("/")[0]
        name, _, port = host.partition(":")
        number = port or (HTTPS if scheme == "https" else HTTP)
        target = address or self.address(family)
        target = f"[{target}]" if ":" in target else target
        done = self.lab.external_exec(
            *("curl", "-sS", "--max-time", str(timeout_s), "-w", "\n%{http_code}"),
            *("--cacert", str(self.root_file), "--resolve", f"{name}:{number}:{target}"),
            *options,
            url,
        )
        text, _, status = done.stdout.rpartition("\n")
        try:
            body = json.loads(text)
        except ValueError:
            body = {}
        return Response(int(status or 0), body, text or done.stderr)

    @contextmanager
    def load(self, *options: str, rate: int, tls: bool = True) -> Iterator[Result]:
        """HTTP/1.1 requests at a fixed rate from outside, during the block."""
        trust = ["--ca", str(self.root_file)] if tls else []
        place = [self.address(), str(HTTPS if tls else HTTP), str(rate)]
        with self._load("http_load.py", *options, *trust, *place) as result:
            yield result

    @contextmanager
    def h2_load(self, rate: int) -> Iterator[Result]:
        """HTTP/2 requests over TLS on four connections at a fixed rate, during the block."""
        trust = ("--ca", str(self.root_file))
        with self._load("h2_load.py", *trust, self.address(), str(HTTPS), str(rate)) as result:
            yield result

    @contextmanager
    def _load(self, program: str, *options: str) -> Iterator[Result]:
        argv = [sys.executable, str(APPS / program), "--host", HOST, *options]
        pipe = subprocess.PIPE
        running = subprocess.Popen(
            self.lab.external_argv(argv), stdin=pipe, stdout=pipe, stderr=pipe
        )
        with running_load(running) as result:
            yield result

    def served_certificate(self) -> str:
        """The certificate that the gateway presents to a new connection, as PEM."""
        done = self.lab.external_exec(
            sys.executable, "-c", _GET_CERTIFICATE, str(self.root_file), self.address(), HOST
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def pods(self) -> list[Object]:
        """The pods of the gateway."""
        label = "gateway.networking.k8s.io/gateway-name"
        return [p for p in self.lab.pods(SHOP) if p["metadata"]["labels"].get(label) == GATEWAY]
