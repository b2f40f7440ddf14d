# SPDX-License-Identifier: Apache-2.0
"""Controller failover, and rotation of the CA and its root."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from cryptography import x509

from tests.support.apiserver.control_plane import ControlPlane, wait_until
from tests.support.apiserver.server import ApiServer
from ztunnel.agent.cluster.certificate_issuer import certificate_issuer_of
from ztunnel.agent.config import Options
from ztunnel.identity import ca
from ztunnel.identity.certificate_store import CertificateStore, KeyPair
from ztunnel.ipc.messages import Certificate
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE, PLUGGED_CA, SELF_SIGNED_CA
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tls.session import TlsSession

WEB = "spiffe://cluster.local/ns/shop/sa/web"
DB = "spiffe://cluster.local/ns/shop/sa/db"


@pytest.fixture
def mesh(fresh_server: ApiServer) -> ControlPlane:
    """A control plane for one test, without a controller."""
    made = ControlPlane(fresh_server)
    made.pod("shop", "web-1", account="web", node="node1")
    made.pod("shop", "db-1", account="db", node="node2")
    return made


def test_standby_takes_over_with_same_ca_when_leader_dies(mesh: ControlPlane) -> None:
    agent = mesh.agent("node1")
    with mesh.controller("one") as first:
        wait_until(lambda: mesh.leader() == "one")
        before = mesh.request(agent, WEB)
        with mesh.controller("two"):
            first.send_signal(signal.SIGKILL)
            first.wait(10)
            after = mesh.request(agent, WEB, timeout=60)
            assert mesh.leader() == "two"
    assert after.roots_pem == before.roots_pem
    assert after.serial != before.serial


def test_request_made_without_controller_is_signed_later(mesh: ControlPlane) -> None:
    from ztunnel.identity.csr import new_request

    agent = mesh.agent("node1")
    name = mesh.submit(agent, new_request(WEB).csr_pem)
    with mesh.controller("late"):
        assert mesh.outcome(name)[0] == "Approved"


def test_graceful_shutdown_releases_lease(mesh: ControlPlane) -> None:
    with mesh.controller("one", "--lease-duration=200") as first:
        wait_until(lambda: mesh.leader() == "one")
        with mesh.controller("two", "--lease-duration=200"):
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 0
            wait_until(lambda: mesh.leader() == "two")
            assert mesh.request(mesh.agent("node1"), WEB).serial


def test_concurrent_start_creates_one_ca(mesh: ControlPlane) -> None:
    with contextlib.ExitStack() as running:
        for name in ("a", "b", "c"):
            running.enter_context(mesh.controller(name))
        bundle = wait_until(mesh.roots)
        assert mesh.request(mesh.agent("node1"), WEB).serial
        assert mesh.leader() in ("a", "b", "c")
    assert len(x509.load_pem_x509_certificates(bundle)) == 1
    secret = mesh.core.read_namespaced_secret(SELF_SIGNED_CA, NAMESPACE)
    assert base64.b64decode(secret.data["root-cert.pem"]) == bundle


def test_controller_recovers_after_api_server_restart(mesh: ControlPlane) -> None:
    agent = mesh.agent("node1")
    with mesh.controller("one") as process:
        assert mesh.request(agent, WEB).serial
        mesh.server.stop_api(kill=True)
        wait_until(lambda: "leadership lost" in mesh.log("one"))
        mesh.server.start_api()
        assert mesh.request(agent, WEB, timeout=60).serial
        assert process.poll() is None


def test_invalid_ca_secret_is_logged_and_not_used(mesh: ControlPlane) -> None:
    parts = new_ca()
    plug(mesh, {**parts, ca.CA_KEY: new_ca()[ca.CA_KEY]})
    with mesh.controller("one"):
        wait_until(lambda: "ca-key.pem is not the key of ca-cert.pem" in mesh.log("one"))
        assert not mesh.roots()
        plug(mesh, parts)
        assert mesh.request(mesh.agent("node1"), WEB).roots_pem == parts[ca.ROOT_CERT]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["plugged in", "self-signed"])
async def test_ca_rotation_without_failed_connections(mesh: ControlPlane, first: str) -> None:
    """Two nodes connect continuously from the Secret's replacement to the old root's removal."""
    old, new = new_ca(), new_ca()
    plug(mesh, old) if first == "plugged in" else None
    with mesh.controller("one", "--cert-ttl=12"):
        wait_until(mesh.roots)
        before = mesh.roots()
        connected = await _connect_while_rotating(mesh, new, before)
    assert connected > 100
    assert mesh.roots() == new[ca.ROOT_CERT]


async def _connect_while_rotating(mesh: ControlPlane, new: dict[str, bytes], before: bytes) -> int:
    async with _node(mesh, "node1", WEB) as web, _node(mesh, "node2", DB) as db:
        async with asyncio.timeout(30):
            while not (web and db):
                await asyncio.sleep(0.05)
        connected = 0

        async def until_connected(done: list[str]) -> None:
            """Connect until the state is reached; any failure is raised."""
            nonlocal connected
            async with asyncio.timeout(90):
                while mesh_state() != done:
                    for _ in range(10):
                        handshake(web[-1], db[-1])
                        handshake(db[-1], web[-1])
                        connected += 2
                    await asyncio.sleep(0.1)

        def mesh_state() -> list[str]:
            issuers = {
                "new" if ca.chain_is_trusted(new[ca.ROOT_CERT], pair[-1].chain_pem) else "old"
                for pair in (web, db)
            }
            return [*sorted(issuers), str(len(x509.load_pem_x509_certificates(mesh.roots())))]

        await until_connected(["old", "1"])
        plug(mesh, new)
        await until_connected(["new", "2"])
        with contextlib.suppress(Exception):  # self-signed: the operator deletes it
            mesh.core.delete_namespaced_secret(SELF_SIGNED_CA, NAMESPACE)
        await until_connected(["new", "1"])
        return connected


@contextlib.asynccontextmanager
async def _node(mesh: ControlPlane, node: str, identity: str) -> AsyncIterator[list[KeyPair]]:
    """An agent's certificates, newest last."""
    nowhere = mesh.server.directory / "unused"
    certifier = certificate_issuer_of(
        Options(
            node=node,
            manifests=None,
            cgroup=nowhere,
            pin_dir=nowhere,
            run_dir=nowhere,
            ca_dir=None,
            access=Access(mesh.agent(node)),
        )
    )
    pairs: list[KeyPair] = []
    store = CertificateStore(certifier.signer, pairs.append)
    certifier.start(store.set_roots)
    store.ensure(identity)
    try:
        yield pairs
    finally:
        await store.close()
        await asyncio.to_thread(certifier.close)


def handshake(client: KeyPair, server: KeyPair) -> None:
    """Mutual TLS with the proxy's sessions. Raises TlsError if one side rejects."""
    with contextlib.ExitStack() as stack:
        near, far = map(stack.enter_context, socket.socketpair())
        for sock in (near, far):
            sock.setblocking(False)
        buffers = BufferPool()
        waiting = [
            TlsSession(near, _credentials(client).client, buffers, server_side=False),
            TlsSession(far, _credentials(server).server, buffers, server_side=True),
        ]
        for _ in range(10):
            waiting = [side for side in waiting if side.handshake()]
            if not waiting:
                return
    raise AssertionError("the handshake does not end")


def _credentials(pair: KeyPair) -> credentials.Credentials:
    return credentials.load_credentials(
        Certificate(
            identity=pair.identity,
            chain_pem=pair.chain_pem,
            key_pem=pair.key_pem,
            roots_pem=pair.roots_pem,
            not_after=pair.not_after,
        )
    )


def new_ca() -> dict[str, bytes]:
    return ca.self_signed("cluster.local", datetime.now(UTC))


def plug(mesh: ControlPlane, parts: dict[str, bytes]) -> None:
    """Apply the CA Secret as an operator does."""
    data = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    metadata = {"name": PLUGGED_CA, "namespace": NAMESPACE}
    mesh.server.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})
