# SPDX-License-Identifier: Apache-2.0
"""The agent of a node in a large cluster: first view, memory, propagation of changes. Needs root.

    python bench/scale.py [--pods 20000] [--nodes 1000] [--services 2000] [--rate 200]
    python bench/scale.py --keep DIR        also keeps the recording of the API server
    python bench/scale.py --replay DIR      only the second part, from a recording

The live part runs kube-apiserver, etcd, and `ztunnel agent` with the RBAC of deploy/, its BPF maps
and its link. The replay part runs another such agent on a server that replays the recorded lists
and events at the requested rate, since API server, etcd and writers need more than a small machine
has. Simulated are the objects of the cluster, which no kubelet runs, and the worker, which is this
process. The time of a change is from its write until the worker has applied it, and for a captured
pod until the BPF map has it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cluster.agent_process import HERE, NODE, AgentProcess, Here, Worker
from bench.cluster.population import WRITERS, Writers, connect, log, pod_path, populate, write
from bench.cluster.recording import Replay, Watching, record_lists
from tests.support.apiserver.objects import account, pod
from tests.support.apiserver.rbac_fixture import agent_kubeconfig, grant
from tests.support.apiserver.server import ApiServer
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION

TOGGLES = 30  # how often the pod of the agent is labeled, captured and released
LABEL_INTERVAL_S = 0.3  # in the replay; the agent annotates the pod meanwhile
PODS = "pods.watch"
OWN = "/api/v1/namespaces/space-0/pods/here"


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
    """Label other pods at a rate; record when the worker sees each change."""
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
            output = write(connection, "PATCH", pod_path(hash(name) % args.pods), body)
            taken[name] = time.monotonic()
            if output:
                raise SystemExit(output)
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
        "unseen": len(sent) - len(late),  # merged with a later change of the same pod
        "messages": worker.deltas - deltas,
        "ms_since_sent": quantiles(late),
        "ms_since_answered": quantiles(after),  # time of watch, agent and worker
    }


def label_own(server: ApiServer, here: Here) -> dict[str, Any]:
    """Label the running pod of this node repeatedly, and wait for the BPF map each time."""
    connection = connect(server)
    samples = []
    for _ in range(TOGGLES):
        begin = time.monotonic()
        write(connection, "PATCH", OWN, mode("ambient"))
        here.until(True)
        samples.append(time.monotonic() - begin)
        write(connection, "PATCH", OWN, mode("none"))
        here.until(False)
    connection.close()
    return {"times": TOGGLES, "ms_since_sent": quantiles(samples)}


def mode(value: str) -> dict[str, Any]:
    return {"metadata": {"labels": {"istio.io/dataplane-mode": value}}}


def synced(
    stack: ExitStack, kubeconfig: Path, directory: Path
) -> tuple[AgentProcess, Worker, dict[str, Any]]:
    """An agent and a worker with the whole view, and the cost of getting it."""
    agent = AgentProcess(stack, kubeconfig, directory)
    socket_path = agent.run_dir / "agent.sock"
    agent.until(socket_path.is_socket, "first view", 180)
    results: dict[str, Any] = {"first_view_s": round(time.monotonic() - agent.began, 2)}
    worker = Worker(socket_path)
    agent.until(worker.complete.is_set, "first view at the worker", 60)
    results["first_view_at_worker_s"] = round(time.monotonic() - agent.began, 2)
    results["cpu_first_view_s"] = round(agent.cpu(), 2)
    known = sum(1 for _ in worker.state.workloads()), sum(1 for _ in worker.state.services())
    results["known"] = {"workloads": known[0], "services": known[1]}
    results["memory_mb_synced"] = agent.memory()
    results["load_average_then"] = os.getloadavg()[0]
    return agent, worker, results


def end(agent: AgentProcess, worker: Worker) -> dict[str, Any]:
    return {"full_resends": worker.resets - 1, "memory_mb_end": agent.memory()}


def live(args: argparse.Namespace, directory: Path, recording: Path) -> dict[str, Any]:
    """Measure with a real API server, and record it."""
    with ExitStack() as stack:
        (directory / "cluster").mkdir()
        server = stack.enter_context(ApiServer(directory / "cluster"))
        grant(server, NODE)
        began = time.monotonic()
        writers = Writers(server)
        populate(server, writers, args)
        writers.close()
        server.apply(
            account("here", "space-0"),
            pod("here", "space-0", HERE, on=NODE, labels=mode("none")["metadata"]["labels"]),
        )
        results: dict[str, Any] = {"populate_s": round(time.monotonic() - began, 1)}
        way = agent_kubeconfig(server, NODE)
        agent, worker, output = synced(stack, way, directory / "live")
        results |= output
        results["quiet"] = change_pods(server, worker, args, 10, args.seconds)
        log(f"scale: live: {results}")
        before = agent.cpu(), time.monotonic()
        results["churn"] = change_pods(server, worker, args, args.rate, args.seconds)
        results["churn"]["agent_cpu_percent"] = percent(agent, before)
        log(f"scale: live, churn: {results['churn']}")
        version = record_lists(connect(server), NODE, recording)
        watching = Watching(connect(server), version, recording / PODS)
        change_pods(server, worker, args, args.rate, args.seconds)
        uid = server.request("GET", OWN)["metadata"]["uid"]
        with Here(agent, uid) as here:
            results["kernel_map"] = label_own(server, here)
        watching.close()
        return results | end(agent, worker)


def percent(agent: AgentProcess, before: tuple[float, float]) -> float:
    """CPU usage since `before`, in percent of one core."""
    return round(100 * (agent.cpu() - before[0]) / (time.monotonic() - before[1]), 1)


def replayed(args: argparse.Namespace, directory: Path, recording: Path) -> dict[str, Any]:
    """Measure with a server that replays the recording."""
    others: deque[bytes] = deque()
    own: dict[tuple[bool, bool], bytes] = {}  # (labeled, annotated) → event
    uid = ""
    for line in (recording / PODS).read_bytes().splitlines(keepends=True):
        event = json.loads(line)
        if event["type"] != "MODIFIED":
            continue
        metadata = event["object"]["metadata"]
        if metadata["name"] != "here":
            others.append(line)
            continue
        uid = metadata["uid"]
        is_labelled = metadata["labels"]["istio.io/dataplane-mode"] == "ambient"
        own[is_labelled, REDIRECTION_ANNOTATION in metadata.get("annotations", {})] = line
    with ExitStack() as stack:
        replay = stack.enter_context(Replay(recording, directory / "replay", NODE))
        agent, worker, results = synced(stack, replay.kubeconfig, directory / "replayed")
        log(f"scale: replayed: {results}")
        toggling = None
        if uid:
            here = stack.enter_context(Here(agent, uid))
            toggling = Toggling(replay, here, own)
            toggling.start()
        before = agent.cpu(), time.monotonic()
        results["churn"] = send_at(args.rate, replay, worker, others)
        results["churn"]["agent_cpu_percent"] = percent(agent, before)
        if toggling is not None:
            results["kernel_map_under_churn"] = toggling.end()
        log(f"scale: replayed, churn: {results}")
        return results | end(agent, worker)


def send_at(rate: float, replay: Replay, worker: Worker, lines: deque[bytes]) -> dict[str, Any]:
    """Replay all recorded changes; record when the worker sees each of them."""
    sent: dict[str, float] = {}
    begin, deltas = time.monotonic(), worker.deltas
    for number, line in enumerate(lines):
        name = json.loads(line)["object"]["metadata"]["labels"]["bench"]
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        sent[name] = time.monotonic()
        replay.send(line)
    took = time.monotonic() - begin
    deadline = time.monotonic() + 10
    while any(name not in worker.seen for name in sent) and time.monotonic() < deadline:
        time.sleep(0.05)
    late = [worker.seen[name] - at for name, at in sent.items() if name in worker.seen]
    return {
        "written_per_second": round(len(sent) / took, 1),
        "changes": len(sent),
        "unseen": len(sent) - len(late),  # merged with a later change of the same pod
        "messages": worker.deltas - deltas,
        "ms_since_sent": quantiles(late),
    }


class Toggling(threading.Thread):
    """Labels the pod of the agent beside the churn; answers its annotations as a server does."""

    def __init__(self, replay: Replay, here: Here, lines: dict[tuple[bool, bool], bytes]) -> None:
        super().__init__(daemon=True)
        self._replay, self._here, self._lines = replay, here, lines
        self._ended = threading.Event()
        self._samples: list[float] = []
        self._labelled = self._marked = False
        replay.marked = self._mark

    def _mark(self) -> None:
        self._marked = not self._marked
        self._replay.send(self._lines[self._labelled, self._marked])

    def _label(self, labelled: bool) -> float:
        """The seconds until the BPF map had it."""
        self._labelled = labelled
        begin = time.monotonic()
        self._replay.send(self._lines[labelled, self._marked])
        self._here.until(labelled)
        return time.monotonic() - begin

    def run(self) -> None:
        while not self._ended.wait(LABEL_INTERVAL_S):
            self._samples.append(self._label(True))
            self._ended.wait(LABEL_INTERVAL_S)
            self._label(False)

    def end(self) -> dict[str, Any]:
        self._ended.set()
        self.join(30)
        return {"times": len(self._samples), "ms_since_sent": quantiles(self._samples)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("nodes", 1000), ("pods", 20000), ("services", 2000), ("rate", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=20, help="of each kind of change")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--keep", type=Path, metavar="DIR", help="where the recording stays")
    kept.add_argument("--replay", type=Path, metavar="DIR", help="a recording: no API server")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("scale: needs root")
    results: dict[str, Any] = {"load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="zt-scale-") as made:
        directory = Path(made)
        recording = args.replay or args.keep or directory / "recording"
        if args.replay is None:
            recording.mkdir(exist_ok=True)
            results["live"] = live(args, directory, recording)
        results["replayed"] = replayed(args, directory, recording)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
