# SPDX-License-Identifier: Apache-2.0
"""The mesh on real nodes, as a person installs, looks at, upgrades and removes it.

In the order of its life: the tests share one cluster, and the last one takes the mesh away.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.mesh import until
from tests.node.conftest import NEXT, PATIENCE, Ztctl
from tests.node.nodes import Nodes
from tests.node.objects import GREETING, account, asking, client, server
from ztunnel.agent.discovery import Discovery
from ztunnel.agent.processes import Processes
from ztunnel.agent.runtime import AUTO, dialler
from ztunnel.datapath.preflight import cgroup2_root
from ztunnel.kube.doorway import ACCOUNT, ANNOTATION, Doorway, parse

SPACE, SYSTEM = "shop", "ztunnel-system"
MARK = "ambient.istio.io/redirection"
AMBIENT = {"istio.io/dataplane-mode": "ambient"}
CLIENT_ID = f"spiffe://cluster.local/ns/{SPACE}/sa/client"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def shop(mesh: Nodes) -> Nodes:
    """Client and server on different nodes, both captured and Ready."""
    space = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": SPACE, "labels": AMBIENT},
    }
    accounts = [account(name, space=SPACE) for name in ("client", "server")]
    pods = [client("client", SPACE, "node-1"), server("server", SPACE, "node-2")]
    mesh.server.apply(space, *accounts, *pods)
    for name in ("client", "server"):
        until(partial(_is_captured, mesh, name), f"{name} captured", within=PATIENCE)
    return mesh


def _pod(cluster: Nodes, name: str, space: str = SPACE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        cluster.server.kubectl("get", "pod", name, "-n", space, "-o", "json")
    )
    return found


def _is_captured(cluster: Nodes, name: str) -> bool:
    pod = _pod(cluster, name)
    ready = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    marked = pod["metadata"].get("annotations", {}).get(MARK) == "enabled"
    return marked and ready.get("Ready") == "True"


def _is_running(cluster: Nodes, name: str) -> bool:
    return bool(_pod(cluster, name, "default")["status"].get("phase") == "Running")


def _ask(cluster: Nodes, name: str, space: str, address: str) -> str:
    """What a client is answered."""
    return cluster.server.kubectl("exec", "-n", space, name, "--", *asking(address)).strip()


def _address(cluster: Nodes, name: str) -> str:
    return str(_pod(cluster, name)["status"]["podIP"])


def test_installed_pods_are_ready_and_never_restarted(mesh: Nodes) -> None:
    pods = json.loads(mesh.server.kubectl("get", "pods", "-n", SYSTEM, "-o", "json"))["items"]
    states = [state for pod in pods for state in pod["status"]["containerStatuses"]]
    names = sorted(state["name"] for state in states)
    assert names == ["agent", "agent", "proxy", "proxy", "signer", "signer"]
    assert [state for state in states if not state["ready"] or state["restartCount"]] == []


def test_check_passes_inside_the_image_on_a_node(mesh: Nodes) -> None:
    words = ("exec", "-n", SYSTEM, "ds/ztunnel-agent", "--", "ztctl", "check", "-o", "json")
    done = mesh.server.try_kubectl(*words)
    found = json.loads(done.stdout)
    assert [row for row in found if row["status"] == "fail"] == []
    assert "connect hook IPv4" in {row["check"] for row in found}


def test_pods_of_two_nodes_talk_by_mutual_tls(shop: Nodes) -> None:
    answer = _ask(shop, "client", SPACE, _address(shop, "server"))
    assert answer == GREETING, f"{answer}\n{shop.told()}"
    logs = until(lambda: _connections(shop, CLIENT_ID), "a connection with the client's identity")
    assert any(line["direction"] == "inbound" for line in logs), logs


def _connections(cluster: Nodes, identity: str) -> list[dict[str, Any]]:
    """The lines `connection` of all proxies that name an identity."""
    words = ("logs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=ztunnel-proxy", "--tail=-1")
    lines = cluster.server.kubectl(*words).splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in told if line["event"] == "connection" and identity in str(line)]


def test_probes_reach_a_captured_pod_even_where_plaintext_is_forbidden(shop: Nodes) -> None:
    strict = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "strict", "namespace": SPACE},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    outsider = client("outsider", "default", "node-1")
    shop.server.apply(strict, account("outsider", "default"), outsider)
    address = _address(shop, "server")
    until(lambda: _is_running(shop, "outsider"), "outsider runs", within=PATIENCE)
    until(
        lambda: "reset" in _ask(shop, "outsider", "default", address),
        "plaintext refused",
        within=PATIENCE,
    )
    started = _pod(shop, "server")["status"]["containerStatuses"][0]
    fresh = server("fresh", SPACE, "node-2")  # becomes Ready by probes only
    shop.server.apply(account("fresh", SPACE), fresh)
    until(lambda: _is_captured(shop, "fresh"), "a new server is Ready", within=PATIENCE)
    assert _is_captured(shop, "server")
    assert _pod(shop, "server")["status"]["containerStatuses"][0] == started
    assert started["restartCount"] == 0


def test_runtime_tells_the_agent_where_pods_are(shop: Nodes, ztctl: Ztctl) -> None:
    for status in _nodes(ztctl("status", "-o", "json")):
        told = status["data_path"]["container_runtime"]
        assert told["answers"], told
        assert told["pods"] == status["pods"]["captured"] > 0, told


def test_runtime_and_cgroups_lead_to_the_same_namespace(shop: Nodes) -> None:
    uid = _pod(shop, "client")["metadata"]["uid"]
    by_cgroup = Discovery(cgroup2_root())
    by_cgroup.refresh([uid])
    root = Path("/proc", shop.machines[0].pid, "root")  # of the node, as /proc/1/root is on one
    told = dialler(AUTO, root)()
    try:
        sandbox = told.sandbox(uid, told.sandboxes()[uid])
    finally:
        told.close()
    assert sandbox.netns
    found = by_cgroup.open(uid)
    assert found is not None
    try:
        status = (root / sandbox.netns.replace("/var/run/", "run/")).stat()
        assert found.inode == (status.st_dev, status.st_ino)
        assert sandbox.id in Processes().cgroups(found.pid)
    finally:
        found.close()


@pytest.mark.parametrize("via", ["auto", "exec", "port-forward"])
def test_ztctl_asks_one_node_or_all_through_the_kubelet(
    shop: Nodes, ztctl: Ztctl, via: str
) -> None:
    until(lambda: len(_doors(shop)) == 2, "agents name their ports")
    answer = ztctl("--via", via, "status", "-o", "json")
    assert {one["node"] for one in _nodes(answer)} == {"node-1", "node-2"}
    done = ztctl("--via", via, "--node", "node-1", "pod", "list", "-o", "json")
    assert "client" in done.stdout
    assert "server" not in done.stdout


def _doors(cluster: Nodes) -> dict[str, Doorway]:
    """By node, what agents say on their pods."""
    words = ("get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=ztunnel-agent")
    pods = json.loads(cluster.server.kubectl(*words, "-o", "json"))["items"]
    said = {
        pod["spec"]["nodeName"]: parse(pod["metadata"].get("annotations", {}).get(ANNOTATION, ""))
        for pod in pods
    }
    return {node: door for node, door in said.items() if door is not None}


def test_who_may_only_forward_ports_looks_that_way_and_changes_nothing_else(
    shop: Nodes, ztctl: Ztctl
) -> None:
    words = ("create", "rolebinding", "eve", f"--role={ACCOUNT}", "--user=eve", "-n", SYSTEM)
    shop.server.kubectl(*words)
    eve = shop.server.kubeconfig("eve")
    answer = ztctl("status", "-o", "json", login=eve)
    assert {one["node"] for one in _nodes(answer)} == {"node-1", "node-2"}
    refused = ztctl("--via", "exec", "--node", "node-1", "status", login=eve, code=3)
    assert "it needs the right get and create pods/exec in ztunnel-system" in refused.stderr
    mallory = shop.server.kubeconfig("mallory")
    assert "403" in ztctl("status", login=mallory, code=1).stderr


def test_processes_of_the_node_get_nothing_at_the_agents_port(shop: Nodes) -> None:
    """With a token of a pod's, and over good TLS: as what shares the node's network would."""
    door = _doors(shop)["node-1"]
    token = shop.server.token(SPACE, "client")
    ask = f"""
import socket, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with context.wrap_socket(socket.create_connection(("127.0.0.1", {door.port}))) as tls:
    tls.sendall(b"{token}\\nGET /v1/status HTTP/1.0\\r\\n\\r\\n")
    print(tls.recv(1 << 16).decode(), end="")
    print(tls.recv(1 << 16))
"""
    answer, end = shop.machines[0].run("python3", "-c", ask).strip().splitlines()
    assert answer.startswith("no: the API server does not know the token")
    assert end == "b''"
    elsewhere = ("python3", "-c", f"import socket; socket.create_connection(('{{}}', {door.port}))")
    for address in (shop.machines[0].address, "10.244.1.1"):
        with pytest.raises(AssertionError, match="ConnectionRefusedError"):
            shop.machines[0].run(*elsewhere[:2], elsewhere[2].format(address))


def _nodes(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else [found]


def test_upgrade_refuses_no_connection(shop: Nodes, ztctl: Ztctl) -> None:
    with _requests(shop, _address(shop, "server")) as answers:
        until(lambda: len(answers) > 20)
        ztctl("install", "--image", NEXT, timeout=200)
        after = len(answers)
        until(lambda: len(answers) > after + 20)
    failed = [(number, answer) for number, answer in enumerate(answers) if answer != GREETING]
    assert failed == [], f"{failed}\n{after} answers when all was rolled out\n{shop.told()}"
    for name in ("daemonset/ztunnel-agent", "daemonset/ztunnel-proxy", "deployment/ztunnel-signer"):
        path = "jsonpath={.spec.template.spec.containers[*].image}"
        assert shop.server.kubectl("get", "-n", SYSTEM, name, "-o", path) == NEXT


@contextmanager
def _requests(cluster: Nodes, address: str) -> Iterator[list[str]]:
    """The client asks again and again, each time by a connection of its own: the answers."""
    words = ("exec", "-n", SPACE, "client", "--", *asking(address, -1))
    login = f"--kubeconfig={cluster.server.admin_kubeconfig}"
    process = subprocess.Popen(
        [cluster.server.binaries / "kubectl", login, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    answers: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.append(line.strip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield answers
        assert process.poll() is None, "the loop ended"
    finally:
        process.kill()
        process.wait()
        reader.join(10)


def test_uninstall_leaves_nothing_in_the_kernel(shop: Nodes, ztctl: Ztctl) -> None:
    for machine in shop.machines:
        assert "links" in machine.run("ls", "/sys/fs/bpf/ztunnel")
    ztctl("uninstall", timeout=200)
    for machine in shop.machines:
        assert "ztunnel" not in machine.run("ls", "/sys/fs/bpf")
        assert machine.run("ls", "/run/ztunnel") == ""
    assert _ask(shop, "client", SPACE, _address(shop, "server")) == GREETING  # plainly, now
