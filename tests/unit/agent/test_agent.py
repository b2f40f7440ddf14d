# SPDX-License-Identifier: Apache-2.0
"""The agent's components together, as they are wired, and the admin API."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
import structlog

from tests.support.agent_fakes import (
    FakeDataPath,
    FakeWorker,
    Namespaces,
)
from tests.support.waiting import wait_until_async
from ztunnel.agent import wiring
from ztunnel.agent.agent import Agent as WholeAgent
from ztunnel.agent.agent import message_handlers, session_observers, view_consumers
from ztunnel.agent.api import admin_views as views_module
from ztunnel.agent.api.data_path_view import DataPathView
from ztunnel.agent.cluster.certificate_issuer import certificate_issuer_of
from ztunnel.agent.cluster.certificates import NodeCertificates
from ztunnel.agent.config import Options
from ztunnel.agent.datapath import KernelDataPath
from ztunnel.agent.pods.cri_discovery import CriDiscovery
from ztunnel.agent.pods.enroller import Enroller
from ztunnel.agent.pods.reconcile_loop import ReconcileLoop
from ztunnel.agent.pods.selection import PodSelection
from ztunnel.agent.workers.server import AgentLinkServer
from ztunnel.ipc.introspection import ConnectionRow, PeerRow
from ztunnel.ipc.messages import (
    Certificate,
    IntrospectionReply,
    LogConfig,
    MeshDelta,
    PodAdded,
    PodRemoved,
)
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.state import MeshState

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


class FakeSource:
    """A configuration source; tests write to the view themselves."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        self.synced.set()

    async def run(self) -> None:
        await asyncio.Event().wait()

    def lacks_account(self, namespace: str, name: str) -> bool:
        return False

    def errors(self) -> dict[str, str]:
        return {}

    def view(self) -> dict[str, Any]:
        return {}


class Probe(ViewConsumer):
    """Records the revision that the consumers behind it have applied."""

    def __init__(self) -> None:
        self.revision = 0

    def apply(self, change: ViewChange) -> None:
        self.revision = change.revision


class Agent:
    """The agent as it is wired, without kernel, source, and the tasks of `Agent.run`."""

    def __init__(self, directory: Path) -> None:
        self.kernel, self.namespaces = FakeDataPath(), Namespaces(directory)
        self.options = Options(
            node="n1",
            manifests=directory,
            cgroup=directory,
            pin_dir=directory,
            run_dir=directory,
            ca_dir=directory / "ca",
        )
        core = wiring.build_core(self.options, cast("KernelDataPath", self.kernel))
        self.core, self.view, self.policies = core, core.view, core.policies
        self.sessions = core.sessions
        traffic = wiring.build_traffic(core)
        self.same_node, self.events = traffic.same_node, traffic.same_node_events
        self.enroller = Enroller(
            self.kernel,
            self.namespaces,
            core.pods,
            core.sessions,
            on_captured=(traffic.same_node.pod_captured,),
        )
        pods = wiring.Pods(
            cast("CriDiscovery", self.namespaces),
            self.enroller,
            PodSelection(self.enroller, core.publisher.publish),
            ReconcileLoop(self.enroller, core.wakeup),
        )
        self.source = FakeSource()
        issuer = certificate_issuer_of(self.options)
        certificates = NodeCertificates(issuer.signer, core.pods, core.sessions)
        self.store = certificates.store
        cluster = wiring.Cluster(self.source, issuer, certificates)
        link = wiring.build_link(core)
        data_path = cast("DataPathView", lambda: {"stats": {}})
        gateways = wiring.build_gateways(core)
        api = wiring.build_api(core, cluster, traffic, link, data_path, gateways=gateways)
        self.admin, self.counters = api.admin, link.counters
        self.probe = Probe()
        first, *others = view_consumers(core, traffic, pods, cluster, link)
        core.publisher.subscribe((first, self.probe, *others))
        self.publish = core.publisher.publish
        self.server = AgentLinkServer(
            self.options.agent_socket,
            0,
            core.sessions,
            message_handlers(traffic, pods, link),
            session_observers(traffic, pods, cluster, link, api),
        )

    def say(self, *objects: Json) -> None:
        for each in objects:
            self.view.upsert(each)
        self.publish()

    def is_serving(self) -> bool:
        """Whether the agent is ready and all pods are captured and served."""
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
    made.server.start()
    await made.admin.start()
    try:
        yield made
    finally:
        await made.admin.close()
        made.server.close()
        made.counters.close()
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
        assert kinds == [LogConfig, MeshDelta, Certificate, PodAdded]
        first = worker.messages[1]
        assert isinstance(first, MeshDelta)
        assert (first.reset, first.complete) == (True, True)
        worker.close()


async def test_changes_are_deltas_with_increasing_revisions(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.say(pod("far", 3, node="n2"))
        a.view.delete("Pod", "shop", "far")
        a.publish()
        await wait_until_async(lambda: len(worker.of(MeshDelta)) == 3)
        deltas = [delta for delta in worker.of(MeshDelta) if isinstance(delta, MeshDelta)]
        assert [each.name for each in deltas[1].workloads] == ["far"]
        assert deltas[2].removed_workloads == (deltas[1].workloads[0].uid,)
        revisions = [delta.revision for delta in deltas]
        assert revisions == sorted(set(revisions))
        assert len(worker.of(PodAdded)) == 1  # the pod of the other node is not added
        worker.close()


async def test_namespace_label_enrolls_and_releases_pods(tmp_path: Path) -> None:
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


async def test_deleted_pod_is_removed_from_workers(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.view.delete("Pod", "shop", "web")
        a.publish()
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        assert worker.of(PodRemoved) == [PodRemoved("web-uid", gone=True)]
        worker.close()


async def test_host_network_and_sidecar_pods_are_refused_with_reason(tmp_path: Path) -> None:
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


async def test_admin_api_returns_pods_workloads_and_certificates(tmp_path: Path) -> None:
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


async def test_objects_larger_than_a_message_neither_end_agent_nor_delay_others(
    tmp_path: Path,
) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        large = pod("large", 3, node="n2")
        large["metadata"]["labels"] = {f"label-{n}": "x" * 60 for n in range(15_000)}
        ports = [{"port": number, "name": f"port-{number}"} for number in range(1, 60_000)]
        service = {
            "kind": "Service",
            "metadata": {"name": "large", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.3", "ports": ports},
        }
        selector = {"matchLabels": {"k" * 1_100_000: "v"}}
        policy = {
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "large", "namespace": "shop"},
            "spec": {"selector": selector},
        }
        a.say(large, service, policy)
        a.say(pod("late", 4, node="n2"))
        late = FakeWorker(a.options.agent_socket).greet()
        for each in (worker, late):
            state = MeshState()

            def has_late(each: FakeWorker = each, state: MeshState = state) -> bool:
                for delta in each.of(MeshDelta):
                    state.apply(cast("MeshDelta", delta))
                return any(found.name == "late" for found in state.workloads())

            await wait_until_async(has_late)
            found = {one.name: one for one in state.workloads()}
            assert found["large"].labels == {}
            refused = {one.name: one.refused for one in state.policies}
            assert set(refused) == {"pod:large", "large"}
            assert all(refused.values())
        assert (await a.get("/healthz/ready"))[0] == 200
        worker.close()
        late.close()


async def test_readiness_names_its_conditions(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        a.source.synced.clear()
        code, body = await a.get("/healthz/ready")
        assert code == 503
        assert body["waiting_for"] == ["first complete view of the mesh", "a proxy worker"]
        a.source.synced.set()
        worker = await _served(a, "web", 2)
        assert (await a.get("/healthz/ready")) == (200, {"ready": True})
        worker.close()
        await wait_until_async(lambda: not a.sessions.sessions)
        assert (await a.get("/healthz/ready"))[0] == 503


async def test_lost_pins_make_the_agent_unready(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.kernel.pins.errors = ("maps/zt_pods: replaced",)
        code, body = await a.get("/healthz/ready")
        assert (code, body["waiting_for"]) == (503, ["BPF pin maps/zt_pods: replaced"])
        a.kernel.pins.errors = ()
        assert (await a.get("/healthz/ready")) == (200, {"ready": True})
        worker.close()


async def test_failing_pod_does_not_make_the_agent_unready(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _served(a, "web", 2)
        a.say(pod("sick", 3))
        assert (await a.get("/healthz/ready")) == (200, {"ready": True})
        _, body = await a.get("/v1/pods")
        problems = {row["workload"]: row["problem"] for row in body["pods"]}
        assert problems == {"shop/web": "", "shop/sick": "no process of the pod found yet"}
        reasons = {row["workload"]: row["reason"] for row in body["pods"]}
        assert reasons == {"shop/web": "", "shop/sick": "NetnsNotFound"}
        assert (await a.get("/v1/status"))[1]["pods"]["waiting"] == 1
        worker.close()


async def test_connections_list_includes_workers_without_reply(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(views_module, "WORKER_TIMEOUT_S", 0.2)

    async with agent(tmp_path) as a:
        talker = await _served(a, "web", 2)
        silent = FakeWorker(a.options.agent_socket, worker=1).greet()
        await wait_until_async(lambda: len(a.sessions.sessions) == 2)
        row = msgspec.to_builtins(
            ConnectionRow(
                id=1,
                direction="outbound",
                source=PeerRow("10.0.0.1:1000"),
                destination=PeerRow("10.0.0.2:80"),
                started=1.5,
            )
        )
        talker.answers = lambda number, _: IntrospectionReply(
            number, msgspec.Raw(msgspec.msgpack.encode([row]))
        )
        _, answer = await a.get("/v1/connections")
        assert answer["connections"] == [{**row, "worker": 0}]
        assert len(answer["unanswered"]) == 1
        silent.close()
        talker.close()


async def test_private_key_is_sent_to_workers_only(tmp_path: Path) -> None:
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


async def test_admin_socket_is_accessible_to_root_only(tmp_path: Path) -> None:
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


async def test_agent_runs_until_stopped_and_leaves_the_kernel_as_it_is(tmp_path: Path) -> None:
    """All components with their tasks, except the kernel: constructed, run and closed."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "pod.json").write_bytes(
        msgspec.json.encode(
            {"apiVersion": "v1", "kind": "List", "items": [namespace(), pod("web", 2)]}
        )
    )
    kernel = FakeDataPath()
    options = Options(
        node="n1",
        manifests=manifests,
        cgroup=tmp_path,
        pin_dir=tmp_path,
        run_dir=tmp_path,
        ca_dir=tmp_path / "ca",
        metrics_port=0,
        health_port=0,
        cri_socket="none",
    )
    whole = WholeAgent(options, cast("KernelDataPath", kernel), "programs loaded")
    stop = asyncio.Event()
    running = asyncio.create_task(whole.run(stop))
    try:
        await wait_until_async(options.agent_socket.exists, "the agent accepts workers")
        worker = FakeWorker(options.agent_socket).greet()
        await wait_until_async(lambda: bool(worker.of(MeshDelta)), "the snapshot")
        status = await get_json(options.admin_socket, "/v1/status")
        assert (status["ready"], status["waiting_for"]) == (True, [])
        assert status["source"]["synced"] is True
        assert status["pods"] == {"captured": 0, "waiting": 1, "refused": 0}
        assert status["data_path"]["loaded"] == "programs loaded"
        assert status["data_path"]["pins"] == {"restored": 0, "errors": []}
        assert kernel.lease > 0
        assert kernel.journal[0][:1] == ("node",)
        worker.close()
    finally:
        stop.set()
        await running
        await whole.close()
    assert kernel.closed
    assert not options.agent_socket.exists()
    assert not options.admin_socket.exists()


async def get_json(socket: Path, path: str) -> Any:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
        session.get(f"http://agent{path}") as response,
    ):
        return await response.json()
