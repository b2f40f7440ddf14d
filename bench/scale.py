# SPDX-License-Identifier: Apache-2.0
"""A node's agent in a large cluster: first view, memory, and how fast a change is everywhere.

    python bench/scale.py [--pods 20000] [--nodes 1000] [--services 2000] [--rate 200]

Real: kube-apiserver, etcd, `ztunnel agent` with the rights of deploy/, its kernel maps, its link.
Simulated: the cluster's objects, which no kubelet runs, and the worker, which is this process: it
decodes and applies what the agent sends as a proxy does. A change's time is from when the write is
sent until the worker has applied it; for a captured pod until it is in the kernel's map.
Needs root. Everything shares the machine, so the writer and the API server slow the agent down.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.deployed import agent_kubeconfig, grant
from tests.cluster.objects import AMBIENT, endpoints, node, pod, service
from tests.cluster.server import ApiServer, free_ports
from ztunnel.datapath import preflight
from ztunnel.datapath.maps import Maps
from ztunnel.link import messages
from ztunnel.link.channel import Channel
from ztunnel.mesh.state import MeshState

SPACES = 50  # namespaces
BEHIND = 10  # pods behind a service
WRITERS = 8
NODE = "bench"  # the agent's; it has one pod, which is captured
HERE = "10.200.0.1"
MODULE = ("-m", "ztunnel.main")
# the same agent with a kernel of plain dicts, for who has no root
PRETENDING = """
import sys
from tests.pure.agent.doubles import FakeDataPath
from ztunnel.agent import datapath, run
async def loaded(*_): return "pretended"
datapath.load = loaded
run.KernelDataPath = lambda _: FakeDataPath()
run.os.geteuid = lambda: 0
run.node.allow_many_descriptors = lambda: None
from ztunnel.main import cli
cli()
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Writers:
    """Threads with a connection each to the API server, as cluster-admin."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._work: queue.SimpleQueue[tuple[str, str, Any] | None] = queue.SimpleQueue()
        self._count = itertools.count(1)
        self.done = 0
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def put(self, method: str, path: str, body: Any) -> None:
        self._work.put((method, path, body))

    def wait(self, what: str, total: int) -> None:
        """Until all is written, with a line now and then."""
        said = time.monotonic()
        while self.done < total:
            if self.failures:
                raise SystemExit(f"{what}: {self.failures[0]}")
            time.sleep(0.2)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                say(f"scale: {what}: {self.done} of {total} writes")

    def close(self) -> None:
        for _ in self.threads:
            self._work.put(None)
        for thread in self.threads:
            thread.join(30)

    def _run(self) -> None:
        connection = connect(self._server)
        while (item := self._work.get()) is not None:
            said = write(connection, *item)
            if said:
                self.failures.append(said)
            self.done = next(self._count)
        connection.close()


def connect(server: ApiServer) -> http.client.HTTPSConnection:
    context: ssl.SSLContext = server.tls()
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def write(connection: http.client.HTTPSConnection, method: str, path: str, body: Any) -> str:
    """Empty, or what the server has against it. A repeated POST is fine."""
    kind = "merge-patch+json" if method == "PATCH" else "json"
    headers = {"Content-Type": f"application/{kind}"}
    connection.request(method, path, json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status in (200, 201, 409):
        return ""
    return f"{method} {path}: {answer.status} {text[:300].decode(errors='replace')}"


def space_of(number: int) -> str:
    return f"space-{number % SPACES}"


def populate(server: ApiServer, writers: Writers, args: argparse.Namespace) -> None:
    """The whole cluster; a pod is as large as a small real one: about 3 kB of JSON."""
    total = 0
    for number in range(SPACES):
        name = f"space-{number}"
        body = {"metadata": {"name": name, "labels": AMBIENT}}
        writers.put("POST", "/api/v1/namespaces", body)
        total += 1
    writers.wait("namespaces", total)
    for number in range(args.nodes):
        writers.put("POST", "/api/v1/nodes", node(f"node-{number}"))
    for number in range(args.pods):
        writers.put("POST", f"/api/v1/namespaces/{space_of(number)}/pods", stuffed(number, args))
    for number in range(args.services):
        space = space_of(number)
        names = [(pod_name(each), ip_of(each)) for each in behind(number, args.pods)]
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices"
        writers.put("POST", f"/api/v1/namespaces/{space}/services", service(f"s-{number}", space))
        writers.put("POST", slices, endpoints(f"s-{number}", space, *names))
    total += args.nodes + args.pods + 2 * args.services
    writers.wait("nodes, pods, services, endpoints", total)
    for number in range(args.pods):
        status = {"status": pod("", "", ip_of(number))["status"]}
        writers.put("PATCH", f"{pod_path(number)}/status", status)
    writers.wait("pods' statuses", total + args.pods)


def behind(number: int, pods: int) -> Iterator[int]:
    """Pods of the service's namespace."""
    first = number % SPACES + SPACES * BEHIND * (number // SPACES)
    return (each % pods for each in range(first, first + SPACES * BEHIND, SPACES))


def pod_name(number: int) -> str:
    return f"app-{number}"


def pod_path(number: int) -> str:
    return f"/api/v1/namespaces/{space_of(number)}/pods/{pod_name(number)}"


def ip_of(number: int) -> str:
    return f"10.{100 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


def stuffed(number: int, args: argparse.Namespace) -> dict[str, Any]:
    on = f"node-{number % args.nodes}"
    made = pod(pod_name(number), space_of(number), ip_of(number), on=on)
    del made["status"]
    made["metadata"]["labels"] |= {
        "app.kubernetes.io/name": f"app-{number % 100}",
        "app.kubernetes.io/part-of": "bench",
        "pod-template-hash": "5d9f7c5b6",
        "version": "v1",
    }
    made["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": "x" * 800
    }
    container = made["spec"]["containers"][0]
    container["env"] = [{"name": f"SETTING_{each}", "value": "value"} for each in range(12)]
    container["resources"] = {"requests": {"cpu": "10m", "memory": "32Mi"}}
    return made


class Worker:
    """The other end of the agent's link: applies what comes, and notes when."""

    def __init__(self, path: Path) -> None:
        self.state = MeshState()
        self.complete = threading.Event()
        self.bytes = self.deltas = self.resets = 0
        self.seen: dict[str, float] = {}  # value of the label `bench` → when
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(path))
        self._channel: Channel[Any] = Channel(sock, messages.ToWorker)  # type: ignore[arg-type]  # a union is no type
        self._channel.send(messages.Hello(version="bench", pid=os.getpid(), worker=0))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (received := self._channel.receive()) is not None:
            message, fds = received
            for fd in fds:
                os.close(fd)
            if isinstance(message, messages.MeshDelta):
                self._take(message)
            elif isinstance(message, messages.PodAdded):
                self._channel.send(messages.PodReady(message.pod_uid))

    def _take(self, delta: messages.MeshDelta) -> None:
        self.deltas += 1
        self.resets += delta.reset
        self.state.apply(delta)
        now = time.monotonic()
        for workload in delta.workloads:
            label = workload.labels.get("bench")
            if label is not None:
                self.seen.setdefault(label, now)
        if delta.complete:
            self.complete.set()


class AgentProcess:
    """`ztunnel agent` with a cgroup, pins and a run directory of its own."""

    def __init__(
        self, stack: ExitStack, server: ApiServer, directory: Path, *, pretend: bool
    ) -> None:
        tag = f"zt-bench-{os.getpid()}"
        self.cgroup = preflight.cgroup2_root() / tag
        self.pin_dir = preflight.BPFFS / tag
        self.run_dir = directory / "run"
        self.log = directory / "agent.log"
        if pretend:
            self.cgroup = directory / "cgroup"
            self.cgroup.mkdir()
            (self.cgroup / "cgroup.procs").touch()
        else:
            self._real_kernel(stack)
        metrics, health = free_ports(2)
        options = {
            "--node": NODE,
            "--kubeconfig": agent_kubeconfig(server, NODE),
            "--ca-dir": directory / "ca",
            "--cgroup": self.cgroup,
            "--pin-dir": self.pin_dir,
            "--run-dir": self.run_dir,
            "--listen": "127.0.0.1",
            "--metrics-port": metrics,
            "--health-port": health,
        }
        module = ("-c", PRETENDING) if pretend else MODULE
        words = [str(word) for pair in options.items() for word in pair]
        with self.log.open("wb") as log:
            self.began = time.monotonic()
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, *module, "agent", *words],
                stdout=log,
                stderr=log,
            )
        stack.callback(self.end)

    def _real_kernel(self, stack: ExitStack) -> None:
        if not preflight.bpffs().mounted:
            subprocess.run(["mount", "-t", "bpf", "bpf", str(preflight.BPFFS)], check=True)
            stack.callback(subprocess.run, ["umount", str(preflight.BPFFS)], check=False)
        self.cgroup.mkdir()
        stack.callback(remove_cgroup, self.cgroup)
        stack.callback(shutil.rmtree, self.pin_dir, ignore_errors=True)

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def until(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{what}: not in time\n{self.log.read_text()[-3000:]}")
            time.sleep(0.01)

    def memory(self) -> dict[str, int]:
        """MB: resident now, and at most so far."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
        return {name: int(value.split()[0]) * 1024 // 1_000_000 for name, value in found.items()}

    def cpu(self) -> float:
        """Seconds so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def remove_cgroup(path: Path) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        deadline = time.monotonic() + 5
        while Path(directory).exists():
            with contextlib.suppress(OSError):
                os.rmdir(directory)
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(samples)
    at = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.99, 1.0)]
    return {
        name: round(1000 * value, 1) for name, value in zip(("p50", "p99", "max"), at, strict=True)
    }


def change_pods(
    server: ApiServer, worker: Worker, args: argparse.Namespace, rate: float, seconds: float
) -> dict[str, Any]:
    """Label other pods at a rate; when each is seen by the worker."""
    sent: dict[str, float] = {}
    taken: dict[str, float] = {}
    numbers = itertools.count()
    first, begin = len(worker.seen), time.monotonic()
    deltas = worker.deltas

    def label(lane: int, lanes: int) -> None:
        connection = connect(server)
        for turn in itertools.count():
            due = begin + (turn * lanes + lane) / rate
            if due > begin + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            name = f"{first}-{next(numbers)}"
            body = {"metadata": {"labels": {"bench": name}}}
            sent[name] = time.monotonic()
            said = write(connection, "PATCH", pod_path(hash(name) % args.pods), body)
            taken[name] = time.monotonic()
            if said:
                raise SystemExit(said)
        connection.close()

    lanes = max(1, min(WRITERS, int(rate // 10)))
    threads = [threading.Thread(target=label, args=(lane, lanes)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    took = time.monotonic() - begin
    deadline = time.monotonic() + 20
    while any(name not in worker.seen for name in list(sent)) and time.monotonic() < deadline:
        time.sleep(0.05)
    late = [worker.seen[name] - at for name, at in sent.items() if name in worker.seen]
    after = [max(worker.seen[name] - at, 0) for name, at in taken.items() if name in worker.seen]
    return {
        "wanted_per_second": rate,
        "written_per_second": round(len(sent) / took, 1),
        "changes": len(sent),
        "unseen": len(sent) - len(late),  # joined with a later one of the same pod
        "messages": worker.deltas - deltas,
        "ms_since_sent": quantiles(late),
        "ms_since_answered": quantiles(after),  # what the watch, the agent and the worker take
    }


def capture(server: ApiServer, agent: AgentProcess, times: int = 30) -> dict[str, Any]:
    """Label a pod that really runs here, and see it in the kernel's map, again and again."""
    made = pod("here", "space-0", HERE, on=NODE, labels={"istio.io/dataplane-mode": "none"})
    server.apply(made)
    path = "/api/v1/namespaces/space-0/pods/here"
    uid = server.request("GET", path)["metadata"]["uid"]
    place = agent.cgroup / "kubepods" / f"pod{uid}" / "app"
    place.mkdir(parents=True)
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    maps = Maps(agent.pin_dir, read_only=True)
    connection = connect(server)
    samples = []

    def is_in() -> bool:
        return any(HERE in entry.addresses for entry in maps.pods())

    try:
        (place / "cgroup.procs").write_text(str(process.pid))
        for _ in range(times):
            begin = time.monotonic()
            write(connection, "PATCH", path, mode("ambient"))
            agent.until(is_in, "capture", 20)
            samples.append(time.monotonic() - begin)
            write(connection, "PATCH", path, mode("none"))
            agent.until(lambda: not is_in(), "release", 20)
    finally:
        maps.close()
        process.kill()
        process.wait()
        connection.close()
    return {"times": times, "ms_since_sent": quantiles(samples)}


def mode(value: str) -> dict[str, Any]:
    return {"metadata": {"labels": {"istio.io/dataplane-mode": value}}}


def measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"pods": args.pods, "services": args.services, "nodes": args.nodes}
    results["load_average_before"] = os.getloadavg()[0]
    with ExitStack() as stack:
        (directory / "cluster").mkdir()
        server = stack.enter_context(ApiServer(directory / "cluster"))
        grant(server, NODE)
        begin = time.monotonic()
        writers = Writers(server)
        populate(server, writers, args)
        writers.close()
        results["populate_s"] = round(time.monotonic() - begin, 1)
        say(f"scale: populated in {results['populate_s']} s")
        agent = AgentProcess(stack, server, directory, pretend=args.pretend)
        socket_path = agent.run_dir / "agent.sock"
        agent.until(socket_path.is_socket, "first view", 180)
        results["first_view_s"] = round(time.monotonic() - agent.began, 2)
        worker = Worker(socket_path)
        agent.until(worker.complete.is_set, "first view at the worker", 60)
        results["first_view_at_worker_s"] = round(time.monotonic() - agent.began, 2)
        results["cpu_first_view_s"] = round(agent.cpu(), 2)
        known = sum(1 for _ in worker.state.workloads()), sum(1 for _ in worker.state.services())
        results["known"] = {"workloads": known[0], "services": known[1]}
        results["memory_mb_synced"] = agent.memory()
        say(f"scale: synced: {results}")
        results["load_average_then"] = os.getloadavg()[0]
        results["quiet"] = change_pods(server, worker, args, 10, args.seconds)
        say(f"scale: quiet: {results['quiet']}")
        before = agent.cpu(), time.monotonic()
        results["churn"] = change_pods(server, worker, args, args.rate, args.seconds)
        results["churn"]["agent_cpu_percent"] = round(
            100 * (agent.cpu() - before[0]) / (time.monotonic() - before[1]), 1
        )
        say(f"scale: churn: {results['churn']}")
        if not args.pretend:
            results["capture"] = capture(server, agent)
        results["full_resends"] = worker.resets - 1
        results["memory_mb_end"] = agent.memory()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("nodes", 1000), ("pods", 20000), ("services", 2000), ("rate", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=30, help="of each kind of change")
    parser.add_argument("--pretend", action="store_true", help="no root: a kernel of plain dicts")
    args = parser.parse_args()
    if os.geteuid() != 0 and not args.pretend:
        raise SystemExit("scale: needs root, or --pretend")
    with tempfile.TemporaryDirectory(prefix="zt-scale-") as directory:
        print(json.dumps(measure(args, Path(directory)), indent=2))


if __name__ == "__main__":
    main()
