# SPDX-License-Identifier: Apache-2.0
"""An ingress gateway on real kubelets: pods, ports of nodes, and renewed certificates."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import ROOT
from tests.support.certificates import server_pair
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.cluster_setup import TIMEOUT_S, run_ztctl
from tests.support.nodes.objects import ENVOY_IMAGE, IMAGE

Json = dict[str, Any]
SPACE, HOST = "edge", "edge.example.com"
GROUP = "gateway.networking.k8s.io"
RENEWALS = 4
RENEWAL_S = 3.0  # without the annotation of pods up to 5 s here, and 60 s by default

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def gateways(mesh: Nodes) -> Nodes:
    """The mesh with the Gateway API and an image of Envoy; namespace SPACE may bind host ports."""
    crds = subprocess.run(
        [ROOT / "scripts/gateway-crds"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = [obj for obj in yaml.safe_load_all(crds.stdout) if obj]
    mesh.server.apply(*(obj for obj in found if obj["spec"].get("group") == GROUP))
    options = ("--proxy-image", ENVOY_IMAGE, "--host-port-namespace", SPACE)
    run_ztctl(mesh, "install", "--image", IMAGE, *options, "--no-wait")
    mesh.server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    return mesh


@pytest.fixture(scope="module")
def chain(gateways: Nodes) -> Iterator[bytes]:
    """The gateway `edge`, a DaemonSet with host ports; the certificate it has at first."""
    first = put_certificate(gateways)
    gateways.server.apply(
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Gateway",
            "metadata": {
                "name": "edge",
                "namespace": SPACE,
                "annotations": {
                    "networking.istio.io/service-type": "ClusterIP",
                    "ztunnel.dev/gateway-workload": "DaemonSet",
                    "ztunnel.dev/gateway-host-ports": "true",
                },
            },
            "spec": {
                "gatewayClassName": "istio",
                "listeners": [
                    {
                        "name": "https",
                        "port": 443,
                        "protocol": "HTTPS",
                        "tls": {"certificateRefs": [{"name": "web"}]},
                    }
                ],
            },
        }
    )
    wait_until(lambda: ready(gateways) == 2, "two pods of the gateway", timeout_s=TIMEOUT_S)
    yield first
    gateways.server.kubectl("delete", "namespace", SPACE)


def put_certificate(cluster: Nodes) -> bytes:
    """Replace the Secret `web`; returns the certificate in DER."""
    certificate, key = server_pair(HOST)
    data = {"tls.crt": certificate, "tls.key": key}
    cluster.server.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": "web", "namespace": SPACE},
            "data": {name: base64.b64encode(each).decode() for name, each in data.items()},
        }
    )
    return ssl.PEM_cert_to_DER_cert(certificate.decode())


def ready(cluster: Nodes) -> int:
    words = ("-n", SPACE, "get", "daemonset", "edge-istio", "-o", "json", "--ignore-not-found")
    text = cluster.server.kubectl(*words)
    return int(json.loads(text)["status"].get("numberReady", 0)) if text.strip() else 0


def pods(cluster: Nodes) -> list[str]:
    path = "jsonpath={.items[*].status.podIP}"
    return cluster.server.kubectl("-n", SPACE, "get", "pods", "-o", path).split()


def certificate_of(address: str) -> bytes:
    """The certificate that a server presents, in DER; empty if it refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, 443), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname=HOST) as tls,
        ):
            return tls.getpeercert(binary_form=True) or b""
    except OSError:
        return b""


def test_gateway_serves_its_certificate_at_a_low_port(gateways: Nodes, chain: bytes) -> None:
    for address in pods(gateways):
        wait_until(lambda at=address: certificate_of(at) == chain, f"https://{address}")  # type: ignore[misc]


def test_gateway_serves_at_the_ports_of_its_nodes(gateways: Nodes, chain: bytes) -> None:
    for machine in gateways.machines:
        wait_until(
            lambda at=machine.address: certificate_of(at) == chain,  # type: ignore[misc]
            f"https://{machine.address}",
        )


def test_renewed_certificate_is_in_use_within_seconds_and_no_handshake_fails(
    gateways: Nodes, chain: bytes
) -> None:
    first, *_ = pods(gateways)
    wait_until(lambda: certificate_of(first) == chain, "the first certificate")
    durations_s = []
    current = chain
    for _ in range(RENEWALS):
        time.sleep(2)  # at different times of the kubelet's period
        began = time.monotonic()
        renewed = put_certificate(gateways)
        while (found := certificate_of(first)) != renewed:
            assert found == current, "a handshake failed"
            assert time.monotonic() - began < TIMEOUT_S
            time.sleep(0.05)
        durations_s.append(round(time.monotonic() - began, 2))
        current = renewed
    print(f"in use after {durations_s} s")
    assert max(durations_s) < RENEWAL_S, durations_s
