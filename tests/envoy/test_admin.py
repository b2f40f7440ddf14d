# SPDX-License-Identifier: Apache-2.0
"""The gateway process's requests to a real Envoy: views, log levels, metrics, no keys."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import World
from ztunnel.gateway import envoy_admin, pod
from ztunnel.gateway.envoy_admin import EnvoyAdmin, EnvoyAdminError
from ztunnel.gateway.xds import descriptors
from ztunnel.ipc.gateway_messages import GatewayPodAdded, GatewayView
from ztunnel.l7.telemetry.page import prometheus_page

CERTIFICATE = Authority().issue("spiffe://cluster.local/ns/shop/sa/web")
# part of the key's text: PEM, with and without escaped line breaks, has it
KEY_PART = CERTIFICATE.key_pem.splitlines()[1].decode()


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEnvoy]:
    """An Envoy that has served one request."""
    world = World()
    with Backend("web") as backend:
        web = world.service("web", backends=[backend.port])
        config = world.compile()
        with running_envoy(config, tmp_path_factory.mktemp("envoy")) as running:
            assert request(running.port, web).status == 200
            yield running


@pytest.fixture
def admin(envoy: RunningEnvoy) -> EnvoyAdmin:
    return _at(envoy.admin)


def _at(port: int) -> EnvoyAdmin:
    """The agent's role: a connected socket for each request."""
    made: list[EnvoyAdmin] = []
    made.append(EnvoyAdmin(lambda: _offer(made[0], port)))
    return made[0]


def _offer(admin: EnvoyAdmin, port: int) -> None:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    asyncio.get_running_loop().call_soon(admin.offer, sock)


async def test_config_dump_and_clusters_are_json(admin: EnvoyAdmin) -> None:
    dump = json.loads(await admin.get("/config_dump?include_eds"))
    assert any("ListenersConfigDump" in each["@type"] for each in dump["configs"])
    clusters = json.loads(await admin.get("/clusters?format=json"))
    assert [each["name"] for each in clusters["cluster_statuses"]] == ["default/web|80"]


async def test_istio_metrics_have_istios_names(admin: EnvoyAdmin) -> None:
    page = prometheus_page(await admin.get("/stats/prometheus?usedonly")).decode()
    assert "\nenvoy_istio_" not in page
    assert "# TYPE istio_requests_total counter" in page
    assert 'reporter="waypoint"' in page
    assert "\nenvoy_cluster_upstream_rq_total" in page


async def test_log_level_changes(admin: EnvoyAdmin) -> None:
    text = (await admin.get("/logging?rbac=debug", method="POST")).decode()
    loggers = pod._loggers(text)
    assert (loggers["rbac"], loggers["admin"]) == ("debug", "warning")


async def test_error_of_envoy_is_reported(admin: EnvoyAdmin) -> None:
    with pytest.raises(EnvoyAdminError, match="404"):
        await admin.get("/nothing")


async def test_pod_without_envoy_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(EnvoyAdminError, match="admin interface"):
        await _at(port).get("/ready")


async def test_request_without_a_socket_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_admin, "TIMEOUT_S", 0.1)
    admin = EnvoyAdmin(lambda: None)
    with pytest.raises(EnvoyAdminError, match="did not answer"):
        await admin.get("/ready")
    spare = socket.socket()
    admin.offer(spare)  # too late: nothing waits for it
    assert spare.fileno() == -1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",
    ],
)
async def test_hostile_answers_are_errors(answer: bytes) -> None:
    """Another container of the pod may listen on Envoy's port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with pytest.raises(EnvoyAdminError):
        await _at(server.sockets[0].getsockname()[1]).get("/ready")
    server.close()


async def test_config_dump_has_no_private_key(tmp_path: Path) -> None:
    """Of a static secret, and of a certificate inside a cluster."""
    certificate = {
        "certificate_chain": {"inline_string": CERTIFICATE.chain_pem.decode()},
        "private_key": {"inline_string": CERTIFICATE.key_pem.decode()},
    }
    context = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"tls_certificates": [certificate]},
    }
    world = World()
    world.service("web")
    config = world.compile()
    extra = {
        "static_resources": {
            "secrets": [{"name": "key", "tls_certificate": certificate}],
            "clusters": [
                {
                    "name": "tls",
                    "type": "STATIC",
                    "transport_socket": {
                        "name": "envoy.transport_sockets.tls",
                        "typed_config": context,
                    },
                }
            ],
        }
    }
    with running_envoy(config, tmp_path, extra) as envoy:
        added = GatewayPodAdded(
            pod_uid="u", workload="w", gateway="shop/waypoint", netns_cookie=1, listeners=()
        )
        made: list[pod.GatewayPod] = []

        made.append(
            pod.GatewayPod(
                descriptors.load(),
                added,
                request_socket=lambda: _offer(made[0].admin, envoy.admin),
                on_change=lambda _: None,
            )
        )
        for view in GatewayView:
            text = (await made[0].view(view, "", "")).decode()
            assert KEY_PART not in text, view
            if view is GatewayView.CONFIG_DUMP:
                assert "[redacted]" in text
        await made[0].close()
