# SPDX-License-Identifier: Apache-2.0
"""Compares ways to watch 20,000 pods: the kubernetes package's informer and our reflector.

    python bench/scale.py --keep DIR            # once: record what an API server sent
    python bench/cluster/informers.py --replay DIR [--rounds 3] [--rate 200] [--changes 2000]

Each variant lists and watches the recorded pods in a process of its own and keeps, per pod, the
fields that the mesh uses. Then the recorded changes are sent at a rate. Decision 0016 has results.
No root needed.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.cluster.agent_process import NODE
from bench.cluster.recording import Replay
from bench.scale import PODS, quantiles
from ztunnel.kube.client.access import Access
from ztunnel.kube.client.object_decoder import Event
from ztunnel.kube.client.reflector import Reflector, Resource

SETTLE_S = 2.0
TIMEOUT_S = 180.0


def package_informer(client: Any, on_label: Callable[[str], object]) -> Callable[[], int]:
    """The package's informer with a cache that stores transformed objects."""
    from kubernetes.client import CoreV1Api  # noqa: PLC0415  20 MB, measured
    from kubernetes.informer import ADDED, MODIFIED, SharedInformer  # noqa: PLC0415
    from kubernetes.informer.cache import ObjectCache  # noqa: PLC0415

    class TransformingCache(ObjectCache):
        """The informer has no transform option: its cache is the only place for one."""

        def _put(self, obj: Any) -> None:
            with self._rlock:
                self._objects[self._key_func(obj)] = transformed(obj)

        def _replace_all(self, objects: Any) -> None:
            rebuilt = {self._key_func(obj): transformed(obj) for obj in objects}
            with self._rlock:
                self._objects = rebuilt

    informer = SharedInformer(CoreV1Api(client).list_pod_for_all_namespaces)
    informer._cache = TransformingCache()  # type: ignore[no-untyped-call]
    for kind in (ADDED, MODIFIED):
        informer.add_event_handler(kind, lambda pod: on_label(bench_label(pod.metadata.labels)))
    informer.start()
    return lambda: len(informer.cache.list_keys()) if informer._resource_version else 0


def bench_label(labels: dict[str, str] | None) -> str:
    """The label that each change sets to a unique value."""
    return (labels or {}).get("bench", "")


def transformed(pod: Any) -> dict[str, Any]:
    """The fields of a model object that the mesh uses."""
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    return {
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "labels": metadata.labels,
        "node": spec.node_name,
        "account": spec.service_account_name,
        "host_network": spec.host_network,
        "phase": status.phase,
        "ips": [each.ip for each in status.pod_ips or ()],
        "ready": any(c.type == "Ready" and c.status == "True" for c in status.conditions or ()),
    }


def reflector(client: Any, on_label: Callable[[str], object]) -> Callable[[], int]:
    """Our reflector; partially decoded objects are stored as they are."""
    pods: dict[tuple[str, str], Any] = {}

    def store(event: Event) -> None:
        metadata = event.object["metadata"]
        pods[metadata["namespace"], metadata["name"]] = event.object
        on_label(bench_label(metadata.get("labels")))

    made = Reflector(client, Resource("Pod", "/api/v1/pods"), store)
    made.start()
    return lambda: len(pods) if made.lists else 0


# Each starts to follow all pods and returns a function: how many were listed, 0 until complete.
VARIANTS = {"package informer": package_informer, "reflector": reflector}


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024, 1)


def follow(variant: str, kubeconfig: Path) -> None:
    """In the measured process: print the state after the list, then when each change was seen."""
    seen: dict[str, float] = {}
    began = time.monotonic()
    listed_pods = VARIANTS[variant](
        Access(kubeconfig).client(), lambda label: seen.setdefault(label, time.monotonic())
    )
    while not listed_pods():
        time.sleep(0.05)
    listed_s = time.monotonic() - began
    time.sleep(SETTLE_S)
    gc.collect()
    before = {
        "pods": listed_pods(),
        "list_s": round(listed_s, 1),
        "memory_mb": memory_mb("VmRSS"),
        "peak_mb": memory_mb("VmHWM"),
        "cpu_list_s": round(time.process_time(), 1),
    }
    print(json.dumps(before), flush=True)
    cpu = time.process_time()
    sys.stdin.readline()  # all changes were sent
    time.sleep(SETTLE_S)
    after = {
        "cpu_changes_s": round(time.process_time() - cpu, 2),
        "memory_after_mb": memory_mb("VmRSS"),
    }
    print(json.dumps({"state": after, "seen": seen}), flush=True)


def measure(variant: str, replay: Replay, lines: list[bytes], rate: float) -> dict[str, Any]:
    """One variant, one round."""
    argv = [sys.executable, __file__, "--follow", variant, "--kubeconfig", str(replay.kubeconfig)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        result: dict[str, Any] = json.loads(process.stdout.readline())
        sent: dict[str, float] = {}
        began = time.monotonic()
        for number, line in enumerate(lines):
            label = json.loads(line)["object"]["metadata"]["labels"]["bench"]
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            sent[label] = time.monotonic()
            replay.send(line)
        process.stdin.write("\n")
        process.stdin.flush()
        final = json.loads(process.stdout.readline())
        watchdog.cancel()
    delays = [final["seen"][label] - at for label, at in sent.items() if label in final["seen"]]
    result |= final["state"]
    return result | {"unseen": len(sent) - len(delays), "ms_until_seen": quantiles(delays)}


def changes(recording: Path, count: int) -> list[bytes]:
    """Recorded watch events that set a new label."""
    lines = []
    for line in (recording / PODS).read_bytes().splitlines(keepends=True):
        event = json.loads(line)
        if event["type"] == "MODIFIED" and "bench" in event["object"]["metadata"]["labels"]:
            lines.append(line)
    return lines[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replay", type=Path, metavar="DIR", help="a recording of bench/scale.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200.0, help="changes per second")
    parser.add_argument("--changes", type=int, default=2000)
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    parser.add_argument("--kubeconfig", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.follow is not None:
        follow(args.follow, args.kubeconfig)
        return
    if args.replay is None:
        raise SystemExit("informers: --replay is required")
    lines = changes(args.replay, args.changes)
    results: dict[str, list[Any]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.rounds):
        for variant, rounds in results.items():
            with (
                tempfile.TemporaryDirectory(prefix="zt-informers-") as made,
                Replay(args.replay, Path(made) / "replay", NODE) as replay,
            ):
                rounds.append(measure(variant, replay, lines, args.rate))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
