# SPDX-License-Identifier: Apache-2.0
"""Mirror, workers, reconciler and certificates together, and what the admin API shows of it."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog

from tests.support.waiting import wait_until_async
from tests.unit.agent.fakes import FakeDataPath, FakeUdpEntry, FakeUdpPath, FakeWorker, Namespaces
from ztunnel.agent.api import admin_views as views_module
from ztunnel.agent.api.admin_server import Admin
from ztunnel.agent.api.admin_views import AgentViews
from ztunnel.agent.config import Options, SameNode
from ztunnel.agent.dispatcher import Dispatcher
from ztunnel.agent.pods.enroller import Enroller
from ztunnel.agent.traffic.same_node import SameNodeTraffic
from ztunnel.agent.traffic.udp_authorizer import UdpAuthorizer
from ztunnel.agent.traffic.udp_redirect import Udp
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.agent.workers.session import Workers
from ztunnel.identity import ca
from ztunnel.identity.certificate_store import CertificateStore
from ztunnel.identity.csr_signer import DiskSigner
from ztunnel.ipc.messages import (
    Certificate,
    IntrospectionReply,
    MeshDelta,
    PodAdded,
    PodRemoved,
)
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.policy.engine import PolicyEngine

Json = dict[str, Any]
PATHS = (
    "/v1/status",
    "/v1/workloads",
    "/v1/services",
    "/v1/pods",
    "/v1/certificates",
    "/v1/connections",
    "/v1/tunnels",
    "/config_dump",
    "/healthz/ready",
)


def namespace(mode: str = "ambient") -> Json:
    labels = {"istio.io/dataplane-mode": mode} if mode else {}
    metadata = {"name": "shop", "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def pod(name: str, number: int, node: str = "n1", uid: str = "", **spec: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": uid or f"{name}-uid"},
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": [], **spec},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": f"10.244.1.{number}"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


class Agent:
    """All of the agent but the kernel and the source."""

    def __init__(self, directory: Path) -> None:
        self.kernel, self.namespaces = FakeDataPath(), Namespaces(directory)
        self.mirror = ClusterView("cluster.local", "Kubernetes")
        self.policies = PolicyEngine()
        self.same_node = SameNodeTraffic(
            self.kernel, SameNode.DIRECT, lambda: self.enroller.pods, self.policies
        )
        self.enroller = Enroller(
            self.kernel, self.namespaces, lambda: self.workers, self.same_node.captured
        )
        self.udp_path, self.now = FakeUdpPath(), 0.0
        ways = UdpRouteTable("n1", self.policies, encrypted=False)
        self.judge = UdpAuthorizer(
            FakeUdpEntry(),
            self.policies,
            lambda: self.enroller.pods,
            ways.workload_at,
            mode=SameNode.DIRECT,
        )
        self.udp = Udp(
            self.udp_path,
            ways,
            lambda: self.enroller.pods,
            lambda: self.workers.sessions,
            lambda: self.now,
        )
        self.feed = Dispatcher(
            node="n1",
            mirror=self.mirror,
            enroller=self.enroller,
            same_node=self.same_node,
            udp=self.udp,
            judge=self.judge,
            policies=self.policies,
            workers=lambda: self.workers,
            store=lambda: self.store,
        )
        authority = ca.load_or_create(directory / "ca", "cluster.local")
        signer = DiskSigner(authority, ttl=timedelta(hours=1))
        self.store = CertificateStore(signer, self.feed.certified)
        self.options = Options(
            node="n1",
            manifests=directory,
            cgroup=directory,
            pin_dir=directory,
            run_dir=directory,
            ca_dir=directory / "ca",
        )
        self.workers = Workers(self.options.agent_socket, 0, self.feed)
        self.source = {"synced": True, "errors": {}}
        views = AgentViews(
            options=self.options,
            mirror=self.mirror,
            enroller=self.enroller,
            workers=self.workers,
            same_node=self.same_node,
            store=self.store,
            policies=self.policies,
            source=lambda: self.source,
            data_path=self.kernel.stats,
        )
        self.admin = Admin(self.options.admin_socket, views)

    def say(self, *objects: Json) -> None:
        for each in objects:
            self.mirror.upsert(each)
        self.feed.changed()

    def is_serving(self) -> bool:
        """Ready, and so is every pod."""
        views = self.admin._views
        return not views.waiting_for() and not any(pod["problem"] for pod in views.pods()["pods"])

    async def get(self, path: str) -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(str(self.options.admin_socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://agent{path}") as response,
        ):
            return response.status, await response.json()


@asynccontextmanager
async def agent(directory: Path) -> AsyncIterator[Agent]:
    made = Agent(directory)
    made.workers.start()
    await made.admin.start()
    try:
        yield made
    finally:
        await made.admin.close()
        made.workers.close()
        await made.store.close()
        made.enroller.close()


async def _served(a: Agent, name: str, number: int) -> FakeWorker:
    """An agent with one enrolled pod that a worker serves."""
    a.namespaces.start(f"{name}-uid", name)
    a.say(namespace(), pod(name, number))
    a.enroller.advance()
    await wait_until_async(lambda: bool(a.store.current()))
    worker = FakeWorker(a.options.agent_socket).greet()
    await wait_until_async(a.is_serving, "readiness")
    return worker


async def test_worker_gets_mesh_then_certificates_then_pods(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        kinds = [type(message) for message in worker.messages]
        assert kinds == [MeshDelta, Certificate, PodAdded]
        first = worker.messages[0]
        assert isinstance(first, MeshDelta)
        assert (first.reset, first.complete) == (True, True)
        worker.close()


async def test_news_reach_workers_as_deltas_with_growing_revisions(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.say(pod("far", 3, node="n2"))
        a.mirror.delete("Pod", "shop", "far")
        a.feed.changed()
        await wait_until_async(lambda: len(worker.of(MeshDelta)) == 3)
        deltas = [delta for delta in worker.of(MeshDelta) if isinstance(delta, MeshDelta)]
        assert [each.name for each in deltas[1].workloads] == ["far"]
        assert deltas[2].removed_workloads == (deltas[1].workloads[0].uid,)
        revisions = [delta.revision for delta in deltas]
        assert revisions == sorted(set(revisions))
        assert len(worker.of(PodAdded)) == 1  # another node's pod is not ours to serve
        worker.close()


async def test_label_change_enrols_and_releases(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.say(namespace(mode=""))
        assert a.kernel.pods == {}
        assert a.store.identities() == set()
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        assert worker.of(PodRemoved) == [PodRemoved("web-uid", gone=False)]
        a.say(namespace())
        await wait_until_async(lambda: bool(a.kernel.pods))
        worker.close()


async def test_deleted_pod_is_gone_for_workers(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.mirror.delete("Pod", "shop", "web")
        a.feed.changed()
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        assert worker.of(PodRemoved) == [PodRemoved("web-uid", gone=True)]
        worker.close()


async def test_host_network_and_sidecar_pods_are_refused_with_a_reason(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        sidecar = pod("sidecar", 4)
        sidecar["metadata"]["annotations"] = {"sidecar.istio.io/status": "{}"}
        a.say(namespace(), pod("host", 3, hostNetwork=True), sidecar)
        assert a.kernel.journal == []
        _, answer = await a.get("/v1/pods")
        assert answer["pods"] == []
        reasons = {each["pod"].rpartition("/")[2]: each["reason"] for each in answer["refused"]}
        assert set(reasons) == {"host", "sidecar"}
        assert all(reasons.values())


async def test_admin_shows_what_the_agent_knows(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        _, status = await a.get("/v1/status")
        assert status["ready"] is True
        assert status["pods"] == {"captured": 1, "waiting": 0, "refused": 0}
        assert status["workers"][0]["synced"] is True
        _, pods = await a.get("/v1/pods")
        assert pods["pods"][0]["workload"] == "shop/web"
        assert pods["pods"][0]["served_by"] == [status["workers"][0]["pid"]]
        _, workloads = await a.get("/v1/workloads")
        identity = "spiffe://cluster.local/ns/shop/sa/web"
        assert workloads["workloads"][0]["identity"] == identity
        _, certificates = await a.get("/v1/certificates")
        assert certificates["certificates"][0]["identity"] == identity
        worker.close()


async def test_readiness_says_what_it_waits_for(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        a.source = {"synced": False, "errors": {}}
        code, body = await a.get("/healthz/ready")
        assert code == 503
        assert body["waiting_for"] == ["first complete view of the mesh", "a proxy worker"]
        a.source = {"synced": True, "errors": {}}
        worker = await _served(a, "web", 2)
        assert (await a.get("/healthz/ready")) == (200, {"ready": True})
        worker.close()
        await wait_until_async(lambda: not a.workers.sessions)
        assert (await a.get("/healthz/ready"))[0] == 503


async def test_a_sick_pod_does_not_take_the_node_out_of_service(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.say(pod("sick", 3))
        assert (await a.get("/healthz/ready")) == (200, {"ready": True})
        _, body = await a.get("/v1/pods")
        problems = {row["workload"]: row["problem"] for row in body["pods"]}
        assert problems == {"shop/web": "", "shop/sick": "no process of the pod found yet"}
        assert (await a.get("/v1/status"))[1]["pods"]["waiting"] == 1
        worker.close()


async def test_connections_of_all_workers_and_those_that_are_silent(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(views_module, "ASK_TIMEOUT", 0.2)

    async with agent(tmp_path) as a:
        talker = await _served(a, "web", 2)
        silent = FakeWorker(a.options.agent_socket, worker=1).greet()
        await wait_until_async(lambda: len(a.workers.sessions) == 2)
        row = {"id": 1, "direction": "outbound"}
        talker.answers = lambda number, _: IntrospectionReply(
            number, msgspec.Raw(msgspec.msgpack.encode([row]))
        )
        _, answer = await a.get("/v1/connections")
        assert answer["connections"] == [{**row, "worker": 0}]
        assert len(answer["unanswered"]) == 1
        silent.close()
        talker.close()


async def test_key_reaches_the_worker_and_nobody_else(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        async with agent(tmp_path) as a:
            worker = await _served(a, "web", 2)
            worker.answers = lambda number, _: IntrospectionReply(
                number, msgspec.Raw(msgspec.msgpack.encode([]))
            )
            certificate = worker.of(Certificate)[0]
            assert isinstance(certificate, Certificate)
            shown = "".join([msgspec.json.encode(await a.get(path)).decode() for path in PATHS])
            shown += repr(certificate) + repr(a.store.current())
            worker.close()
    key = certificate.key_pem.decode()
    assert "BEGIN PRIVATE KEY" in key
    for secret in ("PRIVATE KEY", key.splitlines()[1]):
        assert secret not in shown
        assert secret not in repr(lines)


async def test_admin_socket_is_roots_own(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        assert stat.S_IMODE(a.options.admin_socket.stat().st_mode) == 0o600


async def test_unknown_path_is_not_found(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        connector = aiohttp.UnixConnector(str(a.options.admin_socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://agent/v2/none") as response,
        ):
            assert response.status == 404
