# SPDX-License-Identifier: Apache-2.0
"""The lab: network, kubelet, and what it leaves behind; mostly without agents and proxies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ztunnel.lab import Lab, LabError
from ztunnel.lab.names import STATE_ROOT
from ztunnel.lab.objects import Object
from ztunnel.lab.runtime import cgroups

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NAME = f"zt{os.getpid():x}"
WHOAMI = "http://{}/whoami"


@contextmanager
def bare_lab(suffix: str) -> Iterator[Lab]:
    lab = Lab(f"{NAME}{suffix}", mesh=False)
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with bare_lab("a") as built:
        yield built


def whoami(lab: Lab, pod: str, host: str, *options: str) -> dict[str, str]:
    done = lab.exec(pod, "curl", "-sSg", "--max-time", "5", *options, WHOAMI.format(host))
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def ips(lab: Lab, pod: str) -> tuple[str, str]:
    first, second = (entry["ip"] for entry in lab.pod(pod)["status"]["podIPs"])
    return first, second


def traces() -> dict[str, object]:
    """Everything that a lab could leave behind on the machine."""
    root = cgroups.cgroup2_root()
    bpffs = Path("/sys/fs/bpf")
    marker = NAME.encode()
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            named = marker in (entry / "cmdline").read_bytes()
            if not is_zombie and (named or NAME in (entry / "cgroup").read_text()):
                processes.append(entry.name)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {
        "netns": [p for p in os.listdir("/run/netns") if NAME in p],
        "cgroups": [p.name for p in root.iterdir() if NAME in p.name],
        "pins": [p.name for p in bpffs.iterdir() if NAME in p.name],
        "state": [p.name for p in STATE_ROOT.iterdir() if NAME in p.name]
        if STATE_ROOT.exists()
        else [],
        "processes": [pid for pid in processes if int(pid) != os.getpid()],
        "mounts": [point for point in mounts if NAME in point],
        "links": sorted(os.listdir("/sys/class/net")),
        "resolver": Path("/etc/resolv.conf").read_bytes(),
    }


# -- network ---------------------------------------------------------------------------------


def test_pods_reach_each_other_across_nodes_on_both_families(lab: Lab) -> None:
    client, app = ips(lab, "client"), ips(lab, "deploy/my-app")
    assert lab.pod("client")["spec"]["nodeName"] != lab.pod("deploy/my-app")["spec"]["nodeName"]
    assert whoami(lab, "client", app[0])["client"] == client[0]
    assert whoami(lab, "client", f"[{app[1]}]")["client"] == client[1]


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_service_name_resolves_and_its_virtual_address_works(lab: Lab, family: str) -> None:
    for name in ("my-app", "my-app.default", "my-app.default.svc.cluster.local"):
        assert whoami(lab, "client", name, family)["pod"].startswith("my-app-")


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_pod_reaches_itself_through_its_service(lab: Lab, family: str) -> None:
    assert whoami(lab, "deploy/my-app", "my-app", family)["pod"].startswith("my-app-")


def test_node_reaches_pods_and_services_from_its_own_address(lab: Lab) -> None:
    pod = ips(lab, "deploy/my-app")[0]
    for host in (pod, lab.get("Service", "my-app")["spec"]["clusterIP"]):
        done = lab.node_exec("node1", "curl", "-sS", "--max-time", "5", WHOAMI.format(host))
        assert json.loads(done.stdout)["client"] == "172.30.0.1"


def test_name_outside_the_cluster_is_refused_at_once(lab: Lab) -> None:
    done = lab.exec("client", "curl", "-sS", "http://example.com", timeout=10)
    assert done.returncode == 6  # could not resolve host


def test_service_without_endpoint_refuses_connections(lab: Lab) -> None:
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "unselected", "namespace": "default"},
        "spec": {"selector": {"app": "none"}, "ports": [{"port": 80}]},
    }
    lab.apply(service)
    for ip in lab.get("Service", "unselected")["spec"]["clusterIPs"]:
        url = f"http://[{ip}]" if ":" in ip else f"http://{ip}"
        done = lab.exec("client", "curl", "-sSg", "--max-time", "5", url)
        assert done.returncode == 7  # could not connect, not 28: timed out
    lab.delete("svc", "unselected")


def test_connections_to_a_service_are_balanced_over_its_ready_pods(lab: Lab) -> None:
    lab.apply(_echo_deployment(3), _echo_service())
    seen = {whoami(lab, "client", "echo")["pod"] for _ in range(40)}
    assert len(seen) == 3
    lab.apply(_echo_deployment(1))
    assert {whoami(lab, "client", "echo")["pod"] for _ in range(10)} < seen
    lab.delete("deploy", "echo")
    lab.delete("svc", "echo")


def test_pod_cannot_send_from_a_foreign_address(lab: Lab) -> None:
    app = ips(lab, "deploy/my-app")
    for family, ip, foreign in (("-4", app[0], "10.244.1.99/32"), ("-6", app[1], "fd00:9::9/128")):
        lab.exec(
            "client", "ip", "address", "add", foreign, "dev", "lo", privileged=True, check=True
        )
        source = ["--interface", foreign.partition("/")[0]]
        host = f"[{ip}]" if ":" in ip else ip
        argv = ["curl", "-sSg", family, "--max-time", "1", *source, WHOAMI.format(host)]
        assert lab.exec("client", *argv).returncode == 28  # timed out: dropped by the node
        lab.exec(
            "client", "ip", "address", "del", foreign, "dev", "lo", privileged=True, check=True
        )


# -- pods and containers -----------------------------------------------------------------------


def test_exec_returns_exit_code_and_output(lab: Lab) -> None:
    done = lab.exec("client", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")


def test_exec_runs_in_the_cgroup_network_and_files_of_the_pod(lab: Lab) -> None:
    script = "cat /proc/self/cgroup; hostname; cat /etc/resolv.conf; ls /sys/fs/cgroup >/dev/null"
    done = lab.exec("client", "sh", "-c", script)
    uid = lab.pod("client")["metadata"]["uid"]
    assert f"/ztunnel-lab-{lab.names.name}/node1/kubepods/pod{uid}/client" in done.stdout
    assert "\nclient\n" in done.stdout
    assert "nameserver 10.96.0.10" in done.stdout


def test_container_has_the_default_capabilities_of_containerd(lab: Lab) -> None:
    done = lab.exec("client", "grep", "CapEff", "/proc/self/status")
    assert int(done.stdout.split()[1], 16) == 0xA80425FB  # containerd's default set
    assert lab.exec("client", "ip", "link", "set", "lo", "down").returncode != 0


def test_missing_pod_is_an_error_with_hint(lab: Lab) -> None:
    with pytest.raises(LabError, match="ztctl lab status"):
        lab.exec("missing", "true")


def test_up_restarts_a_killed_container(lab: Lab) -> None:
    pod = lab.pod("deploy/my-app")
    cgroups.kill(lab.names.pod_cgroup(pod["spec"]["nodeName"], pod["metadata"]["uid"]) / "my-app")
    assert lab.exec("client", "curl", "-sS", WHOAMI.format(ips(lab, "deploy/my-app")[0])).returncode
    lab.up()
    assert lab.pod("deploy/my-app")["metadata"]["uid"] == pod["metadata"]["uid"]
    assert whoami(lab, "client", "my-app")["pod"] == pod["metadata"]["name"]


def test_up_recreates_a_pod_without_sandbox(lab: Lab) -> None:
    uid = lab.pod("client")["metadata"]["uid"]
    cgroups.kill(lab.names.pod_cgroup("node1", uid))
    lab.up()
    assert lab.pod("client")["metadata"]["uid"] != uid
    assert whoami(lab, "client", "my-app")["pod"].startswith("my-app-")


def test_killed_dns_can_be_restarted(lab: Lab) -> None:
    lab.restart("node1", "dns", kill=True)
    assert whoami(lab, "client", "my-app")["pod"].startswith("my-app-")


def test_unready_pods_are_reported_with_the_reason(lab: Lab) -> None:
    unready = _pod("unready", command=["sleep", "infinity"], ports=[{"containerPort": 80}])
    problems = lab.apply(unready, timeout=0.5)
    assert "container main runs but is not ready" in problems[0]
    unknown = _pod("unknown", image="mystery")
    assert "image 'mystery' has no command in the lab" in lab.apply(unknown, timeout=0.5)[-1]
    for name in ("unready", "unknown"):
        lab.delete("pod", name)


def test_http_readiness_probe_determines_readiness(lab: Lab) -> None:
    probe = {"httpGet": {"path": "/missing", "port": 80}}
    problems = lab.apply(_pod("probed", image="nginx", readinessProbe=probe), timeout=0.5)
    assert problems
    probe["httpGet"]["path"] = "/whoami"
    assert not lab.apply(_pod("probed", image="nginx", readinessProbe=probe))
    lab.delete("pod", "probed")


def test_host_network_pod_shares_the_namespace_of_its_node(lab: Lab) -> None:
    pod = _pod("host-network")
    pod["spec"] |= {"hostNetwork": True, "nodeName": "node2"}
    assert not lab.apply(pod)
    assert "172.30.0.2" in lab.exec("host-network", "ip", "-br", "address").stdout
    lab.delete("pod", "host-network")
    assert lab.node_exec("node2", "ip", "link", "show", "eth0").returncode == 0


def test_label_changes_the_stored_object(lab: Lab) -> None:
    key = "istio.io/dataplane-mode"
    lab.label("ns", "default", {key: None, "team": "a"})
    assert lab.get("ns", "default")["metadata"]["labels"] == {"team": "a"}
    lab.label("ns", "default", {key: "ambient", "team": None})
    assert lab.get("ns", "default")["metadata"]["labels"] == {key: "ambient"}


def test_second_up_changes_no_object(lab: Lab) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in lab.names.objects.iterdir()}
    lab.up()
    assert {p.name: p.stat().st_mtime_ns for p in lab.names.objects.iterdir()} == before


def test_pod_namespace_has_no_rules_and_only_the_routes_of_its_gateway(lab: Lab) -> None:
    rules = lab.exec("client", "nft", "list", "ruleset", privileged=True)
    assert (rules.returncode, rules.stdout) == (0, "")
    routes = lab.exec("client", "ip", "route").stdout.splitlines()
    assert [line.split()[0] for line in routes] == ["default", "169.254.1.1"]


# -- traces ----------------------------------------------------------------------------------


def test_down_restores_the_machine_and_is_idempotent() -> None:
    before = traces()
    with bare_lab("b") as lab:
        assert traces() != before
        assert lab.down()
        assert traces() == before
        assert lab.down() == []


def test_down_works_after_crashes_and_without_the_state_directory() -> None:
    before = traces()
    with bare_lab("c") as lab:
        for node in ("node1", "node2"):
            for pid in cgroups.pids(lab.names.node_cgroup(node) / "dns"):
                os.kill(pid, signal.SIGKILL)
        stray = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{lab.names.node_netns('node1')}", "sleep", "600"]
        )
        os.kill(lab.status()["pods"][0]["pausePid"], signal.SIGKILL)
        shutil.rmtree(lab.names.state)
        Lab(lab.names.name).down()
        assert stray.wait(5) == -signal.SIGKILL
        assert traces() == before


def test_up_repairs_a_crashed_mesh_and_down_removes_its_pins() -> None:
    before = traces()
    lab = Lab(f"{NAME}f")
    try:
        assert lab.up() == []
        pid = lab.status()["pods"][0]["pausePid"]
        lab.kill("node1", "agent")
        lab.kill("node2", "proxy")
        os.kill(pid, signal.SIGKILL)
        assert lab.up() == []
        assert whoami(lab, "client", "my-app")["pod"].startswith("my-app-")
        for node in ("node1", "node2"):
            for kind in ("agent", "proxy"):
                lab.kill(node, kind)
        shutil.rmtree(lab.names.state)
        assert traces() != before
    finally:
        Lab(lab.names.name).down()
    assert traces() == before


def test_up_with_an_invalid_manifest_creates_nothing(tmp_path: Path) -> None:
    before = traces()
    (tmp_path / "bad.yaml").write_text("kind: Pod")
    with pytest.raises(LabError, match=r"bad\.yaml"):
        Lab(f"{NAME}d", mesh=False).up([tmp_path])
    assert traces() == before


def test_command_line_creates_runs_and_removes_a_lab(tmp_path: Path) -> None:
    before = traces()
    name = f"{NAME}e"

    def ztctl(*argv: str) -> subprocess.CompletedProcess[str]:
        code = "from ztctl.commands.lab import lab; lab(prog_name='ztctl lab')"
        line = [sys.executable, "-c", code, *argv]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    try:
        up = ztctl("up", "--name", name, "--no-mesh", "--nodes", "1")
        assert up.returncode == 0, up.stderr
        assert "node1: pod default/client ready" in up.stderr
        status = json.loads(ztctl("status", "--name", name, "-o", "json").stdout)
        assert [node["name"] for node in status["nodes"]] == ["node1"]
        assert all(pod["ready"] for pod in status["pods"])
        run = ztctl("exec", "--name", name, "client", "--", "sh", "-c", "echo $0; exit 3", "-l")
        assert (run.returncode, run.stdout) == (3, "-l\n")
        assert "10.96.0.10" in ztctl("exec", "--name", name, "--node", "node1", "ip", "a").stdout
    finally:
        down = ztctl("down", "--name", name)
    assert down.returncode == 0
    assert traces() == before


def _pod(name: str, image: str = "debian", **container: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": image, **container}]},
    }


def _echo_deployment(replicas: int) -> Object:
    container = {"name": "echo", "image": "nginx", "ports": [{"containerPort": 8080}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "echo", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "echo"}},
            "template": {
                "metadata": {"labels": {"app": "echo"}},
                "spec": {"containers": [container]},
            },
        },
    }


def _echo_service() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "echo", "namespace": "default"},
        "spec": {"selector": {"app": "echo"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
