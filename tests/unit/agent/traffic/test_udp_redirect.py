# SPDX-License-Identifier: Apache-2.0
"""The redirected destinations, and the sockets of workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import msgspec

from tests.support.agent_fakes import FakeUdpPath, workload
from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.traffic.udp_redirect import (
    CONNECT_UDP_RETRY_S,
    RECONNECT_TIMEOUT_S,
    UdpRedirector,
)
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.ipc.messages import ConnectUdpUnsupported, UdpSocketRequest, UdpSockets
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.mesh.enrollment import TUNNEL_HTTP, TUNNEL_LABEL
from ztunnel.mesh.model import SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.engine import PolicyEngine

COOKIE = 77


def far(name: str, *addresses: str, node: str = "n2") -> Workload:
    return msgspec.structs.replace(workload(name, addresses=addresses), node=node)


@dataclass
class FakeSession:
    udp: dict[int, int] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)

    def send(self, message: UdpSockets, fds: list[int]) -> None:
        assert len(fds) == 1
        self.given.append(message.pod_uid)


class Agent:
    def __init__(self) -> None:
        self.path = FakeUdpPath()
        self.now = 0.0
        self.sessions: list[FakeSession] = []
        netns = SimpleNamespace(fd=-1)
        facts = {"uid": "web-uid", "cookie": COOKIE, "netns": netns, "addresses": ()}
        self.pod = cast("Pod", SimpleNamespace(**facts, workload=workload("web")))
        self.udp = self.start()

    def start(self) -> UdpRedirector:
        ways = UdpRouteTable("n1", PolicyEngine(), encrypted=False)
        return UdpRedirector(
            self.path,
            ways,
            PodTable([self.pod]),
            cast("SessionRegistry", SimpleNamespace(sessions=self.sessions)),
            lambda: self.now,
        )

    def joins(self, port: int = 0, uid: str = "web-uid") -> FakeSession:
        session = FakeSession()
        self.udp.open_sockets(cast("Session", session), UdpSocketRequest(uid, port), [])
        self.sessions.append(session)
        return session

    def silent(self, message: ConnectUdpUnsupported) -> None:
        self.udp.connect_udp_unsupported(cast("Session", FakeSession()), message, [])

    def leaves(self, session: FakeSession) -> None:
        self.sessions.remove(session)
        self.udp.left(cast("Session", session))


def test_udp_to_mesh_pods_of_other_nodes_is_redirected() -> None:
    agent = Agent()
    plain = msgspec.structs.replace(far("plain", "10.2.0.9"), protocol=TunnelProtocol.NONE)
    agent.udp.apply(
        ViewChange(
            (
                far("far", "10.2.0.1", "fd00::1"),
                far("near", "10.1.0.1", node="n1"),
                plain,
                msgspec.structs.replace(far("host", "10.2.0.8"), host_network=True),
            )
        )
    )
    assert agent.path.carried == {"10.2.0.1", "fd00::1"}


def test_routes_follow_workload_changes() -> None:
    agent = Agent()
    one, two = far("one", "10.2.0.1"), far("two", "10.2.0.2")
    agent.udp.apply(ViewChange((one, two)))
    agent.udp.apply(
        ViewChange(
            (msgspec.structs.replace(one, addresses=("10.2.0.3",)),),
            removed_workloads=(two.uid,),
        )
    )
    assert agent.path.carried == {"10.2.0.3"}
    agent.udp.apply(
        ViewChange(
            (msgspec.structs.replace(one, protocol=TunnelProtocol.NONE),),
        )
    )
    assert agent.path.carried == set()


def test_route_of_shared_address_stays_until_last_pod_is_removed() -> None:
    """A new pod may have the address before the API server reports that the old one is deleted."""
    agent = Agent()
    old, new = far("old", "10.2.0.1"), far("new", "10.2.0.1", node="n3")
    agent.udp.apply(ViewChange((old,)))
    agent.udp.apply(ViewChange((new,)))
    agent.udp.apply(ViewChange(removed_workloads=(old.uid,)))
    assert agent.path.carried == {"10.2.0.1"}
    agent.udp.apply(ViewChange(removed_workloads=(new.uid,)))
    assert agent.path.carried == set()


def test_change_writes_only_affected_routes() -> None:
    agent = Agent()
    pods = tuple(far(f"p{number}", f"10.2.0.{number}") for number in range(1, 50))
    agent.udp.apply(ViewChange(pods))
    written = agent.path.writes
    agent.udp.apply(ViewChange((msgspec.structs.replace(pods[0], labels={"a": "b"}),)))
    assert agent.path.writes == written
    agent.udp.apply(ViewChange(removed_workloads=(pods[0].uid,)))
    assert agent.path.writes == written + 1


def test_route_is_retried_when_map_was_full() -> None:
    agent = Agent()
    agent.path.room = 1
    agent.udp.apply(ViewChange((far("one", "10.2.0.1"), far("two", "10.2.0.2"))))
    assert len(agent.path.carried) == 1
    agent.path.room = 2
    agent.udp.sweep()
    assert agent.path.carried == {"10.2.0.1", "10.2.0.2"}


def test_restarted_agent_removes_stale_routes() -> None:
    agent = Agent()
    agent.path.ways = {SocketAddress(ip, 0): UdpRoute.REDIRECT for ip in ("10.2.0.1", "10.9.9.9")}
    agent.udp = agent.start()
    assert agent.path.carried == {"10.2.0.1", "10.9.9.9"}  # until the first change
    agent.udp.apply(ViewChange((far("one", "10.2.0.1"),)))
    assert agent.path.carried == {"10.2.0.1"}


def test_udp_to_workload_without_connect_udp_is_native_until_retry() -> None:
    agent = Agent()
    pods = [far("a", "10.2.0.1"), far("b", "10.2.0.2"), far("c", "10.3.0.1", node="n3")]
    agent.udp.apply(ViewChange(tuple(pods)))
    agent.silent(ConnectUdpUnsupported(pods[0].uid))
    agent.silent(ConnectUdpUnsupported("unknown"))
    assert agent.path.carried == {"10.2.0.2", "10.3.0.1"}  # its neighbour stays redirected
    agent.udp.apply(ViewChange((far("d", "10.2.0.4"),)))
    assert agent.path.carried == {"10.2.0.2", "10.2.0.4", "10.3.0.1"}
    agent.now = CONNECT_UDP_RETRY_S
    agent.udp.sweep()
    assert agent.path.carried == {"10.2.0.1", "10.2.0.2", "10.2.0.4", "10.3.0.1"}


def test_each_worker_gets_its_own_udp_socket() -> None:
    agent = Agent()
    first, second = agent.joins(), agent.joins()
    assert first.given == second.given == ["web-uid"]
    assert agent.path.given[COOKIE] == [first.udp[COOKIE], second.udp[COOKIE]]
    agent.leaves(first)
    assert agent.path.given[COOKIE] == [second.udp[COOKIE]]
    agent.leaves(second)
    assert agent.path.given[COOKIE] == []


def test_unknown_pod_gets_no_udp_socket() -> None:
    agent = Agent()
    assert agent.joins(uid="other").given == []
    assert agent.path.given == {}


def test_workers_keep_udp_sockets_across_agent_restart() -> None:
    agent = Agent()
    agent.path.given[COOKIE] = [4000, 4001, 4002]
    one, liar = agent.joins(port=4001), agent.joins(port=5353)
    assert one.given == []
    assert one.udp == {COOKIE: 4001}
    assert liar.given == ["web-uid"]  # a port that no agent assigned is not accepted
    assert agent.path.given[COOKIE] == [4001, liar.udp[COOKIE]]
    agent.now = RECONNECT_TIMEOUT_S
    agent.path.given[COOKIE].append(4002)
    agent.udp.sweep()
    assert agent.path.given[COOKIE] == [4001, liar.udp[COOKIE]]


def test_failed_udp_socket_request_is_retried() -> None:
    agent = Agent()
    agent.path.broken = True
    worker = agent.joins()
    agent.udp.sweep()
    assert worker.given == []
    agent.path.broken = False
    agent.udp.sweep()
    assert worker.given == ["web-uid"]
    agent.udp.sweep()
    assert worker.given == ["web-uid"]


def test_ports_of_deleted_pod_are_not_written_again() -> None:
    agent = Agent()
    worker = agent.joins()
    del agent.path.given[COOKIE]  # as unenroll does
    agent.leaves(worker)
    assert agent.path.given == {}


def test_waiting_datagrams_are_sent_natively() -> None:
    agent = Agent()
    agent.pod.addresses = ("10.1.0.1",)  # type: ignore[misc]
    there = far("old", "10.2.0.1")
    agent.udp.apply(ViewChange((there,)))
    source, to = SocketAddress("10.1.0.1", 4000), SocketAddress("10.2.0.1", 53)
    agent.silent(ConnectUdpUnsupported(there.uid, "web-uid", source, to, (b"one", b"two")))
    assert agent.path.sent == [(source, to, (b"one", b"two"))]
    forged = SocketAddress("10.1.0.9", 4000), SocketAddress("10.9.9.9", 53)
    agent.silent(ConnectUdpUnsupported(there.uid, "web-uid", forged[0], to, (b"x",)))
    agent.silent(ConnectUdpUnsupported(there.uid, "web-uid", source, forged[1], (b"x",)))
    agent.silent(ConnectUdpUnsupported(there.uid, "other", source, to, (b"x",)))
    assert len(agent.path.sent) == 1


def test_udp_to_sidecar_with_hbone_is_not_redirected() -> None:
    """It would reject connect-udp, and its node would count as one without support."""
    agent = Agent()
    sidecar = msgspec.structs.replace(far("side", "10.2.0.1"), labels={TUNNEL_LABEL: TUNNEL_HTTP})
    agent.udp.apply(ViewChange((sidecar, far("other", "10.2.0.2"))))
    assert agent.path.carried == {"10.2.0.2"}


def test_unknown_udp_is_refused_while_routes_are_missing() -> None:
    agent = Agent()
    assert agent.path.default_route() is UdpRoute.NATIVE  # reserved while the map has room
    agent.path.room = 1
    agent.udp.apply(ViewChange((far("one", "10.2.0.1"), far("two", "10.2.0.2"))))
    assert agent.path.default_route() is UdpRoute.REFUSED
    assert agent.udp.view()["missing_routes"] == 1
    agent.path.room = 2
    agent.udp.sweep()
    assert agent.path.default_route() is UdpRoute.NATIVE
    assert agent.udp.view()["missing_routes"] == 0


def test_restarted_agent_refuses_unknown_udp_until_its_routes_are_complete() -> None:
    agent = Agent()
    agent.path.default = UdpRoute.REFUSED
    agent.udp = agent.start()
    assert agent.path.default_route() is UdpRoute.REFUSED
    agent.udp.apply(ViewChange((far("one", "10.2.0.1"),)))
    assert agent.path.default_route() is UdpRoute.NATIVE


def test_failed_route_does_not_stop_the_others() -> None:
    """A full map still takes new values of the destinations that it has, and removals."""
    agent = Agent()
    old, gone = far("old", "10.2.0.1"), far("gone", "10.2.0.2")
    agent.udp.apply(ViewChange((old, gone)))
    agent.path.room = 0
    agent.udp.apply(
        ViewChange(
            (
                *(far(f"new{number}", f"10.3.0.{number}") for number in range(1, 9)),
                msgspec.structs.replace(old, addresses=("10.2.0.3",)),
            ),
            removed_workloads=(gone.uid,),
        )
    )
    assert agent.path.carried == set()
    assert agent.udp.view()["missing_routes"] == 9
    assert agent.path.default_route() is UdpRoute.REFUSED


def test_ports_that_cannot_be_written_are_retried() -> None:
    agent = Agent()
    agent.path.ports_full = True
    worker = agent.joins()
    assert worker.given == ["web-uid"]  # until then, the kernel refuses the pod's UDP
    assert agent.path.given == {}
    agent.path.ports_full = False
    agent.udp.sweep()
    assert agent.path.given == {COOKIE: [worker.udp[COOKIE]]}
