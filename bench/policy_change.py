# SPDX-License-Identifier: Apache-2.0
"""The time from the agent reading a changed policy to a worker enforcing it.

    .venv/bin/python bench/policy_change.py

The cluster view of the agent receives an object; a worker process receives it over the real link,
with 10,000 policies and 1,000 open connections to evaluate again, and denies a probe connection.
Prints the milliseconds until then. Exits with 1 if the median exceeds 100 ms. Needs no root.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

from ztunnel.agent.workers.handlers import MessageHandlers
from ztunnel.agent.workers.mesh_broadcast import MeshBroadcast
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.server import AgentLinkServer
from ztunnel.ipc.messages import Draining, IntrospectionReply, ToAgent
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.view.publisher import ViewPublisher
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.routing.decisions import Accept
from ztunnel.proxy.context import new_context
from ztunnel.proxy.worker import Worker
from ztunnel.telemetry.logs import configure_logs

POLICIES = 10_000
CONNECTIONS = 1_000
ROUNDS = 20
LIMIT_S = 0.1  # seconds
TIMEOUT_S = 30.0
IDENTITY = "spiffe://cluster.local/ns/front/sa/client"
HERE = SocketAddress("10.244.1.7", 80)


def policy(name: str, account: str) -> dict[str, Any]:
    principal = f"cluster.local/ns/front/sa/{account}"
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"principals": [principal]}}]}]},
    }


def pod() -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "web"},
        "spec": {"nodeName": "n", "serviceAccountName": "web"},
        "status": {"phase": "Running", "podIPs": [{"ip": HERE.ip}]},
    }


class Probe:
    """An open connection that reports when it is terminated."""

    def __init__(self, bench: Connection) -> None:
        self._bench = bench

    def deny(self, decision: Decision) -> None:
        self._bench.send(time.monotonic())


class Bystander:
    """An open connection that stays allowed."""

    def deny(self, decision: Decision) -> None:
        raise AssertionError(decision)


def accepted(workload: Workload, number: int) -> Accept:
    client = SocketAddress(f"10.1.{number >> 8}.{number & 255}", 40000)
    return Accept(client, HERE, None, workload)


def work(run_dir: Path, bench: Connection) -> None:
    """The worker process: admits the bystanders once, and a new probe whenever there is none."""
    configure_logs("console")
    context = new_context()
    worker = Worker(context, run_dir)
    worker.session.dial()

    def admit() -> None:
        if bench.poll() and bench.recv() == "stop":
            context.loop.stop()
            return
        mesh = context.mesh
        workload = mesh.workload_at(HERE.ip) if mesh is not None else None
        if mesh is not None and workload is not None:
            while len(context.admissions) < CONNECTIONS:
                number = len(context.admissions)
                context.admissions.admit(
                    mesh, Bystander(), accepted(workload, number), f"{IDENTITY}2"
                )
            if len(context.admissions) == CONNECTIONS:
                probe = Probe(bench)
                if context.admissions.admit(mesh, probe, accepted(workload, 0), IDENTITY).allowed:
                    bench.send("admitted")
        context.loop.call_later(0.002, admit)

    admit()
    context.loop.run()


class Agent:
    """The part of an agent that a policy change passes through."""

    def __init__(self, run_dir: Path) -> None:
        self.view = ClusterView("cluster.local", "Kubernetes")
        self.publisher = ViewPublisher(self.view)
        self.sessions = SessionTable()
        broadcast = MeshBroadcast(self.view, self.sessions)
        self.publisher.subscribe((broadcast,))
        handlers = MessageHandlers()
        for kind in get_args(ToAgent):
            if kind not in (Draining, IntrospectionReply):  # the session handles these itself
                handlers.register(kind, lambda session, message, fds: None)
        self.server = AgentLinkServer(
            run_dir / "agent.sock", os.getuid(), self.sessions, handlers, (broadcast,)
        )

    def update(self, obj: dict[str, Any]) -> None:
        self.view.upsert(obj)
        self.publisher.publish()


async def measure(run_dir: Path, bench: Connection) -> list[float]:
    agent = Agent(run_dir)
    agent.view.upsert(pod())
    for number in range(POLICIES):
        agent.view.upsert(policy(f"p{number}", f"a{number}"))
    agent.publisher.publish()
    agent.server.start()
    times = []
    for _ in range(ROUNDS):
        agent.update(policy("switch", "another"))
        await receive(bench)  # admitted
        start = time.monotonic()
        agent.update(policy("switch", "client"))
        times.append(await receive(bench) - start)
    bench.send("stop")
    agent.server.close()
    return times


async def receive(bench: Connection) -> Any:
    """The next message of the worker; the loop runs meanwhile."""
    deadline = time.monotonic() + TIMEOUT_S
    while not bench.poll():
        if time.monotonic() > deadline:
            raise TimeoutError("the worker did not respond")
        await asyncio.sleep(0.0005)
    return bench.recv()


def main() -> int:
    configure_logs("console")
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory(prefix="zt-bench-") as directory:
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(Path(directory), theirs)
        )
        process.start()
        try:
            times = asyncio.run(measure(Path(directory), ours))
        finally:
            process.join(TIMEOUT_S)
            process.kill()
    middle, worst = statistics.median(times) * 1000, max(times) * 1000
    print(f"{POLICIES:,} policies, {CONNECTIONS:,} live connections, {ROUNDS} changes")
    print(f"from policy change to terminated connection: {middle:.1f} ms, at most {worst:.1f} ms")
    return int(middle > LIMIT_S * 1000)


if __name__ == "__main__":
    sys.exit(main())
