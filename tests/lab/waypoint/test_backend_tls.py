# SPDX-License-Identifier: Apache-2.0
"""A waypoint verifies a TLS server with the authority of a ConfigMap."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.lab.waypoint import shop
from tests.lab.waypoint.traffic import Shop
from tests.support.certificate_authority import CertificateAuthority
from tests.support.waiting import wait_until

HOST = "secure.example.com"
API = "gateway.networking.k8s.io/v1"
SERVER = """
import http.server, json, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "tls"}).encode())
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
server = http.server.ThreadingHTTPServer(("", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"""


def objects(certificate: Path) -> list[dict[str, Any]]:
    """A TLS server, its Service at port 80 with the waypoint, and a BackendTLSPolicy."""
    pod = shop.pod("secure", "node2", "my-app")
    pod["metadata"]["labels"] = {"app": "secure"}
    pod["spec"]["containers"][0]["command"] = [sys.executable, "-c", SERVER, str(certificate)]
    port = {"name": "http", "port": 80, "targetPort": 8443}
    service = shop.obj(
        "v1",
        "Service",
        "secure",
        labels={"istio.io/use-waypoint": shop.WAYPOINT},
        spec={"selector": {"app": "secure"}, "ports": [port]},
    )
    reference = {"group": "", "kind": "ConfigMap", "name": "authority"}
    spec = {
        "targetRefs": [{"group": "", "kind": "Service", "name": "secure"}],
        "validation": {"hostname": HOST, "caCertificateRefs": [reference]},
    }
    return [pod, service, shop.obj(API, "BackendTLSPolicy", "secure", spec=spec)]


def config_map(authority: CertificateAuthority) -> dict[str, Any]:
    return shop.obj("v1", "ConfigMap", "authority", data={"ca.crt": authority.pem})


def test_config_map_decides_which_servers_are_trusted(waypoint_shop: Shop, tmp_path: Path) -> None:
    ours, other = CertificateAuthority("ours"), CertificateAuthority("other")
    certificate = tmp_path / "server.pem"
    certificate.write_text(ours.issue(HOST))
    made = waypoint_shop

    def status() -> int:
        return made.get("buyer-far", service="secure").status

    (problem,) = made.lab.apply(*objects(certificate))
    assert "ConfigMap authority does not exist" in problem
    wait_until(lambda: status() == 503, lambda: f"no certificates, found {status()}")
    assert made.lab.apply(config_map(ours)) == []
    wait_until(lambda: status() == 200, lambda: f"trusted, found {status()}")
    assert made.get("buyer-far", service="secure").version == "tls"
    assert made.lab.apply(config_map(other)) == []
    wait_until(lambda: status() == 503, lambda: f"not trusted, found {status()}")
    assert made.lab.apply(config_map(ours)) == []
    wait_until(lambda: status() == 200, lambda: f"trusted again, found {status()}")
