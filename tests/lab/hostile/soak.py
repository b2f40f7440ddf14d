# SPDX-License-Identifier: Apache-2.0
"""Runs a tenant's requests across nodes, first alone and then with a hostile tenant.

`victim` and `evil` are namespaces of one mesh. Policy admits only the victim's own client to its
server. The attacker may write every namespaced object that the mesh reads, in its namespace, and
runs pods without privileges on both nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.helpers.harness import APPS, addresses, named, python_pod
from tests.lab.hostile.object_attacks import ObjectAttacker, Write
from tests.lab.kubernetes.api_lab import ApiLab
from tests.lab.kubernetes.shop import until_captured
from tests.support.apiserver.objects import ambient
from tests.support.apiserver.server import ROOT, ApiServer
from tests.support.waiting import wait_until
from ztunnel.lab import admin_get
from ztunnel.lab.network.addresses import node_addresses

RATE = 200  # requests per second of the victim
PORT, FLOOD_PORT = 8000, "7900"
WRITE_PAUSE_S = 0.1
# In place of the CPU limits of pods, which the lab does not have: the attackers' own work must not
# be taken for an effect on the mesh.
LIMITED = ("nice", "-n", "19", sys.executable)
SAMPLE_INTERVAL_S = 0.5
MEBIBYTE = 1024 * 1024

Object = dict[str, Any]


@dataclass
class Load:
    """Requests of the victim: their number, the errors, and latencies in milliseconds."""

    requests: int
    failures: list[str]
    p50_ms: float
    p99_ms: float


@dataclass
class SoakResult:
    """`alone` and `attacked`: the victim's requests. `answered`: those of the attacker that the
    victim answered although policy denies them. `peak_bytes`: resident memory by component."""

    alone: Load
    attacked: Load
    answered: int
    attacks: Counter[str] = field(default_factory=Counter)
    peak_bytes: dict[str, int] = field(default_factory=dict)


def world() -> list[Object]:
    """The pods and services of both tenants."""
    server = python_pod("server", "node2", namespace="victim")
    server["spec"]["containers"][0] |= {
        "command": [sys.executable, str(APPS / "http_server.py"), "v1"],
        "ports": [{"containerPort": PORT}],
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "server", "namespace": "victim"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": PORT}]},
    }
    return [
        ambient("victim"),
        ambient("evil"),
        named("ServiceAccount", "client", "victim"),
        server,
        service,
        python_pod("client", "node1", namespace="victim", account="client"),
        python_pod("attacker", "node1", namespace="evil"),
        python_pod("backend", "node2", namespace="evil"),
    ]


def admit_own_client() -> Object:
    """The victim's policy."""
    principal = "cluster.local/ns/victim/sa/client"
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "own-client", "namespace": "victim"},
        "spec": {"rules": [{"from": [{"source": {"principals": [principal]}}]}]},
    }


def install_crds(server: ApiServer) -> None:
    """Install the CRDs of the mesh, before its agents start."""
    server.kubectl("apply", "--server-side", "-f", str(ROOT / "deploy" / "crds"))
    for name in ("authorizationpolicies.security", "serviceentries.networking"):
        crd = f"crd/{name}.istio.io"
        server.kubectl("wait", "--for=condition=Established", "--timeout=30s", crd)


class Soak:
    """A mesh with both tenants on `api`, which has just been started."""

    def __init__(
        self,
        api: ApiLab,
        seed: int,
        rate: int = RATE,
        progress: Callable[[str], None] = print,
    ) -> None:
        """`rate`: requests per second of the victim."""
        self._rate = rate
        self._api = api
        self._seed = seed
        self._progress = progress
        self._result: SoakResult | None = None

    def run(self, alone_s: float, attacked_s: float) -> SoakResult:
        """Prepare, measure alone, attack; returns what happened."""
        self._prepare()
        self._progress(f"victim alone for {alone_s:g} s")
        with self._load() as alone:
            time.sleep(alone_s)
        self._progress(f"victim and attacker for {attacked_s:g} s")
        result = SoakResult(alone[0], alone[0], 0)
        with self._load() as attacked, self._attack(result):
            self._wait(attacked_s, result)
        result.attacked = attacked[0]
        return result

    def _prepare(self) -> None:
        api = self._api
        assert api.lab.apply(*world()) == []
        for pod, node in (("victim/server", "node2"), ("evil/attacker", "node1")):
            until_captured(api, pod, node)
        until_captured(api, "victim/client", "node1")
        api.server.apply(admit_own_client())
        wait_until(
            lambda: all(_has_policy(api, node.name) for node in api.lab.nodes),
            "both nodes to enforce the victim's policy",
        )

    @contextmanager
    def _load(self) -> Iterator[list[Load]]:
        """Send the victim's requests meanwhile; then the list has their result."""
        vip = self._api.lab.get("Service", "server", "victim")["spec"]["clusterIP"]
        argv = (
            sys.executable,
            str(APPS / "http_load.py"),
            vip,
            str(PORT),
            str(self._rate),
            "--new",
        )
        process = self._api.lab.popen("client", *argv, namespace="victim")
        found: list[Load] = []
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            yield found
        finally:
            found.append(_load_result(process))

    @contextmanager
    def _attack(self, result: SoakResult) -> Iterator[None]:
        """Attack from pods and by objects meanwhile; then add what was done to `result`."""
        lab, flood = self._api.lab, str(APPS / "flood.py")
        backend = lab.popen("backend", *LIMITED, flood, "serve", FLOOD_PORT, namespace="evil")
        time.sleep(0.5)
        targets = (addresses(lab, "server", "victim")[4], str(PORT))
        sinks = (addresses(lab, "backend", "evil")[4], FLOOD_PORT)
        nodes = [node_addresses(node.index)[0] for node in lab.nodes]
        script = str(APPS / "hostile_client.py")
        argv = (*LIMITED, script, str(self._seed), *targets, *sinks, *nodes)
        attacker = lab.popen("attacker", *argv, namespace="evil")
        ended = threading.Event()
        writer = threading.Thread(target=self._write_objects, args=(ended, result))
        writer.start()
        try:
            yield
        finally:
            ended.set()
            writer.join(60)
            out, _ = attacker.communicate(timeout=60)
            backend.kill()
            backend.communicate()
            found = json.loads(out.splitlines()[-1])
            result.attacks.update(found["attacks"])
            result.answered = found["answered"]

    def _write_objects(self, ended: threading.Event, result: SoakResult) -> None:
        lab = self._api.lab
        claimed = [
            *(node_addresses(node.index)[0] for node in lab.nodes),
            addresses(lab, "server", "victim")[4],
            str(lab.get("Service", "server", "victim")["spec"]["clusterIP"]),
        ]
        host = "server.victim.svc.cluster.local"
        attacker = ObjectAttacker(self._seed, "evil", host, "attacker", claimed)
        while not ended.wait(WRITE_PAUSE_S):
            write = attacker.next()
            result.attacks[write.attack] += 1
            self._perform(write)

    def _perform(self, write: Write) -> None:
        path = f"{write.collection}/{write.name}"
        if write.method == "PATCH":
            self._send("PATCH", path, write.body)
            return
        self._send("DELETE", path, "")
        if write.method == "POST":
            self._send("POST", write.collection, write.body)

    def _send(self, method: str, path: str, body: str) -> None:
        """Send text as it is: a client may not be able to encode it. Rejections are expected."""
        server = self._api.server
        kind = "merge-patch+json" if method == "PATCH" else "json"
        request = urllib.request.Request(
            server.url + path,
            body.encode() or None,
            {"Content-Type": f"application/{kind}"},
            method=method,
        )
        with suppress(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=20, context=server.tls()).read()

    def _wait(self, seconds: float, result: SoakResult) -> None:
        deadline = time.monotonic() + seconds
        reported_at = time.monotonic()
        while time.monotonic() < deadline:
            for node in self._api.lab.nodes:
                for kind in ("agent", "proxy"):
                    name = f"{kind} {node.name}"
                    found = resident_bytes(self._api.lab.component(node.name, kind).cgroup)
                    result.peak_bytes[name] = max(found, result.peak_bytes.get(name, 0))
            if time.monotonic() - reported_at > 30:
                reported_at = time.monotonic()
                memory = ", ".join(
                    f"{name} {peak // MEBIBYTE} MiB" for name, peak in result.peak_bytes.items()
                )
                self._progress(f"{deadline - reported_at:.0f} s left; at most {memory}")
            time.sleep(SAMPLE_INTERVAL_S)


def _has_policy(api: ApiLab, node: str) -> bool:
    _, answer = admin_get(api.lab.names, node, "/v1/policies")
    return any(row["name"] == "own-client" for row in (answer or {}).get("policies", []))


def resident_bytes(cgroup: Path) -> int:
    """The resident memory of all processes of a cgroup."""
    pages = 0
    for pid in (cgroup / "cgroup.procs").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def _load_result(process: subprocess.Popen[bytes]) -> Load:
    out, err = process.communicate(timeout=60)
    assert out, err.decode()
    rows = json.loads(out.splitlines()[-1])["requests"]
    took_ms = sorted((end - start) * 1000 for start, end, status, _ in rows if status == 200)
    failures = [f"{status} {text}" for _, _, status, text in rows if status != 200]
    return Load(len(rows), failures, took_ms[len(took_ms) // 2], took_ms[int(len(took_ms) * 0.99)])
