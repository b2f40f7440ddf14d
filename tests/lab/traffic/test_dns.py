# SPDX-License-Identifier: Apache-2.0
"""DNS by real clients: glibc, musl, dig, and systemd-resolved in the pod."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.helpers.harness import APPS, addresses, client, proxy_log, python_pod
from tests.support.waiting import wait_until
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.lab import Lab
from ztunnel.lab.runtime import cgroups, process

RESOLVED = Path(sys.prefix) / "systemd-resolved"  # unpacked by scripts/setup
SERVER4, SERVER6 = "10.96.0.10", "fd00:10:96::a"
NODES = ("node1", "node2")
HEADLESS = "twins.default.svc.cluster.local"


def _service(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def names(lab: Lab) -> Iterator[Lab]:
    """A headless service of two pods, an ExternalName service, and an IPv4-only service."""
    port = {"name": "who", "port": 7001}
    made = [
        _service("twins", clusterIP="None", selector={"twin": "yes"}, ports=[port]),
        _service("elsewhere", type="ExternalName", externalName="my-app.default.svc.cluster.local"),
    ]
    for pod in ("near", "server"):
        lab.label("pod", pod, {"twin": "yes"})
    lab.apply(*made)
    wait_until(lambda: len(_dig(lab, HEADLESS)) == 2, "the headless service to be known")
    try:
        yield lab
    finally:
        for service in made:
            lab.delete("service", service["metadata"]["name"])
        for pod in ("near", "server"):
            lab.label("pod", pod, {"twin": None})


@pytest.fixture(scope="module")
def name_servers(lab: Lab) -> Iterator[dict[str, dict[int, str]]]:
    """The addresses of an enrolled name server, by node: of the client's, and another."""
    pods = [python_pod(f"dns-{node}", node, script="name_server.py") for node in NODES]
    for pod in pods:
        pod["spec"]["containers"][0]["ports"] = []  # a port means a TCP probe
    assert lab.apply(*pods) == []
    try:
        yield {node: addresses(lab, f"dns-{node}") for node in NODES}
    finally:
        for node in NODES:
            lab.delete("pod", f"dns-{node}")


@pytest.fixture(scope="module")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`apps/resolve.c` compiled with each C library, by library."""
    directory, made = tmp_path_factory.mktemp("resolve"), {}
    for library, compiler in (("glibc", "cc"), ("musl", "musl-gcc")):
        made[library] = directory / library
        argv = [compiler, "-O1", "-Wall", "-Werror", "-o", str(made[library])]
        subprocess.run([*argv, str(APPS / "resolve.c")], check=True, timeout=60)
    return made


def _dig(lab: Lab, *words: str, pod: str = "client", namespace: str = "default") -> list[str]:
    done = lab.exec(
        pod, "dig", "+short", "+tries=1", "+time=5", f"@{SERVER4}", *words, namespace=namespace
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")[:-1]


def _dig_header(lab: Lab, *words: str) -> str:
    done = lab.exec("client", "dig", "+tries=1", "+time=5", f"@{SERVER4}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def _vips(lab: Lab, service: str) -> list[str]:
    return list(lab.get("service", service)["spec"]["clusterIPs"])


def _captured_queries(lab: Lab, pod: str = "client") -> int:
    """The number of queries of a pod that BPF redirected to the proxy."""
    maps = Maps(lab.names.pin_dir("node1"), read_only=True)
    try:
        mine = addresses(lab, pod)[4]
        cookie = next(each.netns_cookie for each in maps.pods() if mine in each.addresses)
        return maps.pod_stats()[cookie].dns
    finally:
        maps.close()


@pytest.mark.parametrize("library", ["glibc", "musl"])
def test_clients_of_each_c_library_resolve_services(
    names: Lab, resolve: dict[str, Path], library: str
) -> None:
    before = _captured_queries(names)
    done = names.exec(
        "client",
        str(resolve[library]),
        *("my-app", "my-app.default", "my-app.default.svc.cluster.local.", "twins"),
        *("elsewhere", "missing", "missing.example.org"),
    )
    assert done.returncode == 0, done.stderr
    found = {words[0]: set(words[1:]) for words in map(str.split, done.stdout.splitlines())}
    app = set(_vips(names, "my-app"))
    assert len(app) == 2
    assert found["my-app"] == found["my-app.default"] == app
    assert found["my-app.default.svc.cluster.local."] == app
    pods = addresses(names, "near"), addresses(names, "server")
    assert found["twins"] == {ip for pod in pods for ip in pod.values()}
    assert found["elsewhere"] == app  # only the cluster DNS knows this name
    assert found["missing"] <= {
        "NONAME",
        "AGAIN",
    }  # not in the cluster
    assert _captured_queries(names) > before


def test_service_records_have_a_ttl_of_thirty_seconds(names: Lab) -> None:
    said = _dig_header(names, "my-app.default.svc.cluster.local")
    assert "status: NOERROR" in said
    assert " 30 IN A " in said


def test_mesh_names_are_answered_locally_and_others_forwarded(names: Lab) -> None:
    ours = _dig_header(names, "my-app.default.svc.cluster.local")
    other = _dig_header(names, "elsewhere.default.svc.cluster.local")
    assert " 30 IN A " in ours
    assert " 5 IN CNAME " in other  # TTL of the DNS of the lab


@pytest.mark.parametrize(
    "way", [(), ("+tcp",), ("+noedns",), ("+bufsize=4096",), ("+tcp", "+noedns")]
)
@pytest.mark.parametrize(
    "name", ["my-app.default.svc.cluster.local", "elsewhere.default.svc.cluster.local"]
)
def test_dig_by_udp_tcp_with_and_without_edns(names: Lab, way: tuple[str, ...], name: str) -> None:
    said = _dig(names, *way, name)
    expected = [_vips(names, "my-app")[0]]
    if name.startswith("elsewhere"):
        expected.insert(0, "my-app.default.svc.cluster.local.")
    assert said == expected


def test_answers_come_from_the_queried_server_on_both_families(names: Lab) -> None:
    for server in (SERVER4, SERVER6):
        done = names.exec(
            "client", "dig", "+tries=1", "+time=5", f"@{server}", "my-app.default.svc.cluster.local"
        )
        assert f"SERVER: {server}#53" in done.stdout


@pytest.mark.parametrize("node", ["node1", "node2"])
@pytest.mark.parametrize("version", [4, 6])
def test_name_servers_in_the_mesh_answer(
    name_servers: dict[str, dict[int, str]], names: Lab, node: str, version: int
) -> None:
    server = name_servers[node][version]
    done = names.exec("client", "dig", "+short", "+tries=2", "+time=3", f"@{server}", "a.outside")
    assert done.stdout.split() == ["192.0.2.53"]


def test_missing_record_and_missing_name_have_different_answers(names: Lab) -> None:
    no_data = _dig_header(names, "my-app.default.svc.cluster.local", "MX")
    assert "status: NOERROR" in no_data
    assert "ANSWER: 0" in no_data
    no_name = _dig_header(names, "missing.my-app.default.svc.cluster.local")
    assert "status: NXDOMAIN" in no_name
    unknown = _dig_header(names, "missing.default.svc.cluster.local")
    assert "status: NXDOMAIN" in unknown  # answer of the cluster DNS


def test_headless_service_resolves_by_srv_and_by_endpoint(names: Lab) -> None:
    said = _dig(names, f"_who._tcp.{HEADLESS}", "SRV")
    hosts = sorted({line.split()[3].removesuffix(".") for line in said if " 7001 " in line})
    dashed = addresses(names, "near")[4].replace(".", "-")
    assert f"{dashed}.{HEADLESS}" in hosts
    assert _dig(names, f"{dashed}.{HEADLESS}") == [addresses(names, "near")[4]]


def test_pods_that_are_not_ready_are_left_out(names: Lab) -> None:
    gone = addresses(names, "near")[4]
    names.label("pod", "near", {"twin": None})
    try:
        wait_until(lambda: gone not in _dig(names, HEADLESS), "the endpoint to be left out")
        assert len(_dig(names, HEADLESS)) == 1
    finally:
        names.label("pod", "near", {"twin": "yes"})
        wait_until(lambda: gone in _dig(names, HEADLESS), "the endpoint to be back")


def test_queries_of_systemd_resolved_in_the_pod_are_captured(
    names: Lab, resolve: dict[str, Path]
) -> None:
    assert RESOLVED.exists(), "run scripts/setup test"
    before = _captured_queries(names)
    stub = _as_root(names, "client", str(APPS / "resolved.sh"), str(RESOLVED), SERVER4)
    for library in ("glibc", "musl"):
        hosts = [f"{name}.default.svc.cluster.local" for name in ("my-app", "elsewhere", "twins")]
        done = _run(*stub, str(resolve[library]), *hosts)
        assert done.returncode == 0, done.stderr[-3000:]
        found = {words[0]: set(words[1:]) for words in map(str.split, done.stdout.splitlines())}
        app = set(_vips(names, "my-app"))
        assert found[hosts[0]] == found[hosts[1]] == app
        pods = addresses(names, "near"), addresses(names, "server")
        assert found[hosts[2]] == {ip for pod in pods for ip in pod.values()}
    done = _run(*stub, "dig", "+tries=1", "+tcp", f"_who._tcp.{HEADLESS}", "SRV")
    assert "SERVER: 127.0.0.53#53" in done.stdout, done.stderr[-3000:]
    assert " 7001 " in done.stdout
    assert _captured_queries(names) > before


def _as_root(lab: Lab, pod: str, *argv: str) -> list[str]:
    """Run in the network and files of the pod, with the privileges that a daemon needs to start."""
    found = lab.pod(pod)
    inside = lab.names.pod_cgroup(found["spec"]["nodeName"], found["metadata"]["uid"])
    container = next(each.parent for each in inside.rglob("cgroup.procs") if each.read_text())
    enter = ["nsenter", f"--target={cgroups.pids(container)[0]}", "--net", "--mount"]
    return process.in_cgroup_argv(container, [*enter, *argv])


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def _entry(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"number": 17001, "name": "who", "targetPort": 7001}], **spec},
    }


def test_hosts_of_service_entries_are_resolved_and_reached(
    names: Lab, resolve: dict[str, Path]
) -> None:
    """One entry for pods of the mesh on the other node, one for an external host by wildcard."""
    outside = addresses(names, "server", "plain")[4]
    made = [
        _entry(
            "inside",
            hosts=["db.example.com"],
            addresses=["240.240.0.9"],
            resolution="STATIC",
            location="MESH_INTERNAL",
            workloadSelector={"labels": {"app": "server"}},
        ),
        _entry(
            "outside",
            hosts=["*.example.org"],
            addresses=["240.240.0.10"],
            resolution="STATIC",
            location="MESH_EXTERNAL",
            endpoints=[{"address": outside}],
            exportTo=["."],
        ),
    ]
    names.apply(*made)
    try:
        wait_until(
            lambda: _dig(names, "db.example.com") == ["240.240.0.9"], "the entry to be known"
        )
        wait_until(lambda: _dig(names, "a.b.example.org") == ["240.240.0.10"], "the wildcard")
        for library in ("glibc", "musl"):
            done = names.exec("client", str(resolve[library]), "db.example.com", "x.example.org")
            assert done.stdout.split() == [
                *("db.example.com", "240.240.0.9"),
                *("x.example.org", "240.240.0.10"),
            ]
        server = addresses(names, "server")[4]
        said = client(names, "client", "names", "240.240.0.9", 17001)
        assert said["client"]["getpeername"] == ["240.240.0.9", 17001]
        assert said["server"]["getsockname"][0].endswith(server)
        said = client(names, "client", "names", "240.240.0.10", 17001)
        assert said["server"]["getsockname"][0].endswith(outside)
    finally:
        for entry in made:
            names.delete("serviceentry", entry["metadata"]["name"])
    wait_until(
        lambda: _dig(names, "db.example.com") != ["240.240.0.9"], "the entry to be forgotten"
    )


def test_queries_of_unenrolled_pods_are_not_captured(names: Lab) -> None:
    said = names.exec(
        "client", "dig", f"@{SERVER4}", "my-app.default.svc.cluster.local", namespace="plain"
    )
    assert " 5 IN A " in " ".join(said.stdout.split())


def test_names_resolve_while_the_agent_restarts(names: Lab, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    asker = [sys.executable, str(APPS / "dns_query_loop.py"), SERVER4, str(stop)]
    hosts = [f"{name}.default.svc.cluster.local" for name in ("my-app", "elsewhere", "twins")]
    with names.popen("client", *asker, *hosts) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asking\n"
        for _ in range(2):
            names.restart("node1", "agent", kill=True)
        stop.touch()
        said = json.loads(process.stdout.readline())
    assert said["failed"] == []
    assert said["asked"] > 10


def test_proxy_logs_no_warning(names: Lab) -> None:
    log = proxy_log(names, "node1")
    assert "handler failed" not in log
    assert "accept failed" not in log
