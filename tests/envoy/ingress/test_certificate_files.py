# SPDX-License-Identifier: Apache-2.0
"""A real Envoy that reads certificates from a directory that the kubelet updates."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.ports import free_ports
from tests.support.waiting import wait_until_async
from tests.support.waypoint.dynamic_envoy import dynamic_envoy
from tests.support.waypoint.envoy import RunningEnvoy
from tests.support.waypoint.kubelet_directory import KubeletDirectory
from tests.support.waypoint.tls_client import client_context, handshake
from ztunnel.gateway.xds import descriptors
from ztunnel.gateway.xds.ads_server import AdsServer
from ztunnel.gateway.xds.resources import ResourceEncoder
from ztunnel.l7 import names
from ztunnel.l7.config import Json
from ztunnel.l7.names import MAX_GATEWAY_CERTIFICATES, TypeUrl
from ztunnel.l7.traffic import secrets

T = TypeVar("T")
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_INSPECTOR = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
_RESPONSE = "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config"
IN_USE_S = 5.0  # after a change of the files


async def run(call: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(call, *args)


class Gateway:
    """An Envoy with one chain per certificate: `a` has the SNI name a.example.com and so on."""

    def __init__(self, directory: KubeletDirectory, port: int) -> None:
        api = descriptors.load()
        self.files = directory
        self.port = port
        self.authority = CertificateAuthority()
        self.server = AdsServer(api, "pod", lambda: None)
        self.encoder = ResourceEncoder(api)
        self.envoy: RunningEnvoy

    def publish(self, *ids: str, authorities: str = "") -> None:
        """`authorities`: the secret that validates clients of all chains."""
        listener = {
            "name": "ingress",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.port}},
            "listener_filters": [{"name": "sni", "typed_config": {"@type": _INSPECTOR}}],
            "filter_chains": [_chain(each, authorities) for each in ids],
        }
        config, invalid = self.encoder.encode(
            {
                TypeUrl.LISTENER: {"ingress": listener},
                TypeUrl.SECRET: {
                    each: secrets.secret(each) for each in (*ids, authorities) if each
                },
            }
        )
        assert invalid == []
        self.server.set_config(config)

    def write(self, id_: str, subject: str) -> None:
        """Write a new certificate and key."""
        self.files.write(self.pair(id_, subject))

    def pair(self, id_: str, subject: str) -> dict[str, str]:
        return pair_files(id_, self.authority.issue(subject))

    def subject(self, id_: str) -> str:
        """The common name of the certificate in use; the error if the handshake fails."""
        try:
            return handshake(self.port, f"{id_}.example.com", receive=0).subject
        except OSError as error:
            return type(error).__name__

    async def wait_for(self, id_: str, subject: str) -> float:
        """Wait until a certificate is in use; returns the seconds."""
        began = time.monotonic()
        while (found := await run(self.subject, id_)) != subject:
            assert time.monotonic() - began < IN_USE_S, found
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    def inotify_instances(self) -> int:
        directory = Path(f"/proc/{self.envoy.process.pid}/fd")
        return sum(1 for each in directory.iterdir() if "inotify" in os.readlink(each))


def pair_files(id_: str, pem: str) -> dict[str, str]:
    certificate, mark, key = pem.partition("-----BEGIN PRIVATE KEY-----")
    return {f"{id_}.crt": certificate, f"{id_}.key": mark + key}


def _chain(id_: str, authorities: str) -> Json:
    common: Json = {"tls_certificate_sds_secret_configs": [secrets.reference(id_)]}
    if authorities:
        common["combined_validation_context"] = {
            "default_validation_context": {},
            "validation_context_sds_secret_config": secrets.reference(authorities),
        }
    context = {
        "@type": _TLS,
        "common_tls_context": common,
        "require_client_certificate": bool(authorities),
    }
    response = {"@type": _RESPONSE, "response": {"inline_string": id_}}
    return {
        "name": id_,
        "filter_chain_match": {"server_names": [f"{id_}.example.com"]},
        "transport_socket": {"name": "tls", "typed_config": context},
        "filters": [{"name": "respond", "typed_config": response}],
    }


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Gateway]:
    (port,) = free_ports(1)
    gateway = Gateway(KubeletDirectory(directory / "certificates"), port)
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    await gateway.server.listen(sock)
    context = dynamic_envoy(directory, sock.getsockname()[1], port=port)
    gateway.envoy = await run(context.__enter__)
    try:
        yield gateway
    finally:
        await run(context.__exit__, None, None, None)
        gateway.server.close()


@pytest.fixture
async def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    path = str(tmp_path / "certificates")
    monkeypatch.setattr(names, "GATEWAY_CERTIFICATES_DIRECTORY", path)
    async with running(tmp_path) as found:
        yield found


async def test_certificate_that_is_mounted_later_is_used_within_seconds(gateway: Gateway) -> None:
    """Other chains of the listener work in the meantime."""
    gateway.write("a", "first")
    gateway.publish("a", "b")
    await gateway.wait_for("a", "first")
    assert await run(gateway.subject, "b") == "ConnectionResetError"
    await wait_until_async(lambda: [each.name for _, each in gateway.server.rejected()] == ["b"])
    gateway.write("b", "second")
    await gateway.wait_for("b", "second")
    await wait_until_async(lambda: gateway.server.is_synced and not gateway.server.rejected())


async def test_renewal_takes_effect_without_a_failed_handshake(gateway: Gateway) -> None:
    gateway.write("a", "0")
    gateway.publish("a")
    await gateway.wait_for("a", "0")
    seen: list[str] = []
    stop = threading.Event()

    def connect() -> None:
        while not stop.is_set():
            seen.append(gateway.subject("a"))

    client = asyncio.create_task(run(connect))
    for version in range(1, 11):
        gateway.write("a", str(version))
        assert await gateway.wait_for("a", str(version)) < IN_USE_S
    await wait_until_async(lambda: len(seen) > 20)
    stop.set()
    await client
    assert set(seen) <= {str(each) for each in range(11)}
    assert seen == sorted(seen, key=int)


@pytest.mark.parametrize("defect", ["junk", "other key", "empty", "missing"])
async def test_invalid_file_leaves_the_certificate_in_use(gateway: Gateway, defect: str) -> None:
    gateway.write("a", "valid")
    gateway.publish("a")
    await gateway.wait_for("a", "valid")
    if defect == "missing":
        gateway.files.replace({})
    else:
        invalid = {"junk": {"a.crt": "junk"}, "empty": {"a.crt": "", "a.key": ""}}
        other_key = {"a.key": gateway.pair("a", "other")["a.key"]}
        gateway.files.write(invalid.get(defect, other_key))
    failed = "sds.a.key_rotation_failed"
    await wait_until_async(lambda: gateway.envoy.stat(failed) > 0)
    assert await run(gateway.subject, "a") == "valid"
    gateway.write("a", "renewed")
    await gateway.wait_for("a", "renewed")


async def test_clients_are_refused_until_the_authorities_are_mounted(
    gateway: Gateway, tmp_path: Path
) -> None:
    old, new = CertificateAuthority("old"), CertificateAuthority("new")
    gateway.write("a", "a")
    gateway.publish("a", authorities="clients.ca")
    await wait_until_async(lambda: bool(gateway.server.rejected()))
    assert not await run(admits, gateway, None, tmp_path)
    assert not await run(admits, gateway, old, tmp_path)
    for authority, other in ((old, new), (new, old)):  # mounted, and renewed
        gateway.files.write({"clients.ca": authority.pem})
        began = time.monotonic()
        while not await run(admits, gateway, authority, tmp_path):
            assert time.monotonic() - began < IN_USE_S
        assert not await run(admits, gateway, other, tmp_path)
        assert not await run(admits, gateway, None, tmp_path)


def admits(gateway: Gateway, authority: CertificateAuthority | None, directory: Path) -> bool:
    """Whether a client with a certificate of an authority, or without one, is served."""
    path = None
    if authority is not None:
        path = directory / "client.pem"
        path.write_text(authority.issue("client"))
    context = client_context(certificate=path)
    try:
        return handshake(gateway.port, "a.example.com", context).data == b"a"
    except OSError:
        return False


async def test_restarted_control_plane_completes_a_rejected_certificate(gateway: Gateway) -> None:
    """Envoy accepts a secret that equals the last one without reading the files."""
    gateway.publish("a")
    await wait_until_async(lambda: bool(gateway.server.rejected()))
    address = gateway.server._servers[0].sockets[0].getsockname()
    gateway.server.close()
    api = descriptors.load()
    gateway.server, gateway.encoder = AdsServer(api, "pod", lambda: None), ResourceEncoder(api)
    sock = socket.create_server(address)
    sock.setblocking(False)
    gateway.write("a", "late")
    await gateway.server.listen(sock)
    gateway.publish("a")
    await gateway.wait_for("a", "late")


async def test_most_certificates_of_a_gateway_fit_twice_on_a_node(gateway: Gateway) -> None:
    """fs.inotify.max_user_instances is 128 by default; Envoy aborts at the limit."""
    ids = [f"m{number}" for number in range(MAX_GATEWAY_CERTIFICATES)]
    files: dict[str, str] = {}
    for each in ids:
        files |= gateway.pair(each, each)
    gateway.files.write(files)
    gateway.publish(*ids)
    await gateway.wait_for(ids[-1], ids[-1])
    await wait_until_async(lambda: gateway.server.is_synced)
    assert {await run(gateway.subject, each) for each in ids} == set(ids)
    assert gateway.inotify_instances() == MAX_GATEWAY_CERTIFICATES
    assert 2 * gateway.inotify_instances() < 128
    gateway.files.write(files := {name: text for name, text in files.items() if "m0" not in name})
    gateway.write("m0", "renewed")
    await gateway.wait_for("m0", "renewed")
    assert gateway.inotify_instances() == MAX_GATEWAY_CERTIFICATES


async def test_configuration_dump_has_no_keys(gateway: Gateway) -> None:
    gateway.write("a", "a")
    gateway.publish("a")
    await gateway.wait_for("a", "a")
    dump = await run(gateway.envoy.admin_get, "/config_dump?include_eds")
    assert '"a"' in dump
    page = await run(gateway.envoy.admin_get, "/stats/prometheus")
    assert (
        'envoy_listener_ssl_certificate_expiration_unix_time_seconds{envoy_tls_certificate="a"'
    ) in page
    assert "PRIVATE KEY" not in dump
    assert "PRIVATE KEY" not in gateway.envoy.log.read_text()
