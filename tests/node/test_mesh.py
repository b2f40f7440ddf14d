# SPDX-License-Identifier: Apache-2.0
"""The life of a mesh on real nodes: install, query, upgrade, uninstall.

The tests share one cluster and run in order; the last one uninstalls the mesh.
"""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.control_plane import wait_until
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.cluster_setup import TIMEOUT_S, Ztctl
from tests.support.nodes.objects import AMBIENT, GREETING, NEXT, account, client, namespace, server
from tests.support.nodes.pods import (
    SYSTEM,
    address_of,
    ask,
    connections,
    is_captured,
    is_running,
    pod,
    requests,
)
from ztunnel.agent.pods.cgroup_discovery import CgroupDiscovery
from ztunnel.agent.pods.cri_discovery import AUTO, runtime_dialer
from ztunnel.agent.pods.netns_finder import ProcFs
from ztunnel.datapath.requirements import cgroup2_root
from ztunnel.kube.admin_endpoint import ACCOUNT, ANNOTATION, AdminEndpoint, parse

SPACE = "shop"
CLIENT_ID = f"spiffe://cluster.local/ns/{SPACE}/sa/client"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def shop(mesh: Nodes) -> Nodes:
    """Client and server on different nodes, both captured and Ready."""
    space = namespace(SPACE, AMBIENT)
    accounts = [account(name, space=SPACE) for name in ("client", "server")]
    pods = [client("client", SPACE, "node-1"), server("server", SPACE, "node-2")]
    mesh.server.apply(space, *accounts, *pods)
    for name in ("client", "server"):
        wait_until(partial(is_captured, mesh, SPACE, name), f"{name} captured", timeout_s=TIMEOUT_S)
    return mesh


def test_installed_pods_are_ready_and_never_restarted(mesh: Nodes) -> None:
    pods = json.loads(mesh.server.kubectl("get", "pods", "-n", SYSTEM, "-o", "json"))["items"]
    states = [state for pod in pods for state in pod["status"]["containerStatuses"]]
    names = sorted(state["name"] for state in states)
    assert names == sorted(["agent", "controller", "gateway", "proxy"] * 2)
    assert [state for state in states if not state["ready"] or state["restartCount"]] == []


def test_check_passes_inside_the_image_on_a_node(mesh: Nodes) -> None:
    words = ("exec", "-n", SYSTEM, "ds/ztunnel-agent", "--", "ztctl", "check", "-o", "json")
    done = mesh.server.try_kubectl(*words)
    found = json.loads(done.stdout)
    assert [row for row in found if row["status"] == "fail"] == []
    assert "connect hook IPv4" in {row["check"] for row in found}


def test_pods_on_two_nodes_communicate_by_mutual_tls(shop: Nodes) -> None:
    answer = ask(shop, SPACE, "client", address_of(shop, SPACE, "server"))
    assert answer == GREETING, f"{answer}\n{shop.diagnostics()}"
    logs = wait_until(
        lambda: connections(shop, CLIENT_ID), "a connection with the client's identity"
    )
    assert any(line["direction"] == "inbound" for line in logs), logs


def test_probes_reach_a_captured_pod_even_where_plaintext_is_forbidden(shop: Nodes) -> None:
    strict = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "strict", "namespace": SPACE},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    outsider = client("outsider", "default", "node-1")
    shop.server.apply(strict, account("outsider", "default"), outsider)
    address = address_of(shop, SPACE, "server")
    wait_until(
        lambda: is_running(shop, "default", "outsider"), "outsider runs", timeout_s=TIMEOUT_S
    )
    wait_until(
        lambda: "reset" in ask(shop, "default", "outsider", address),
        "plaintext refused",
        timeout_s=TIMEOUT_S,
    )
    started = pod(shop, SPACE, "server")["status"]["containerStatuses"][0]
    fresh = server("fresh", SPACE, "node-2")  # becomes Ready only through probes
    shop.server.apply(account("fresh", SPACE), fresh)
    wait_until(
        lambda: is_captured(shop, SPACE, "fresh"), "a new server is Ready", timeout_s=TIMEOUT_S
    )
    assert is_captured(shop, SPACE, "server")
    assert pod(shop, SPACE, "server")["status"]["containerStatuses"][0] == started
    assert started["restartCount"] == 0


def test_agent_locates_pods_through_the_container_runtime(shop: Nodes, ztctl: Ztctl) -> None:
    for status in _nodes(ztctl("status", "-o", "json")):
        runtime = status["data_path"]["container_runtime"]
        assert runtime["responds"], runtime
        assert runtime["pods"] == status["pods"]["captured"] > 0, runtime


def test_runtime_and_cgroups_lead_to_the_same_namespace(shop: Nodes) -> None:
    uid = pod(shop, SPACE, "client")["metadata"]["uid"]
    by_cgroup = CgroupDiscovery(cgroup2_root())
    by_cgroup.refresh([uid])
    root = Path("/proc", shop.machines[0].pid, "root")  # on the node, as with /proc/1/root
    runtime = runtime_dialer(AUTO, root)()
    try:
        sandbox = runtime.sandbox(uid, runtime.sandboxes()[uid])
    finally:
        runtime.close()
    assert sandbox.netns
    found = by_cgroup.open(uid)
    assert found is not None
    try:
        status = (root / sandbox.netns.replace("/var/run/", "run/")).stat()
        assert found.inode == (status.st_dev, status.st_ino)
        assert sandbox.id in ProcFs().cgroups(found.pid)
    finally:
        found.close()


@pytest.mark.parametrize("via", ["auto", "exec", "port-forward"])
def test_ztctl_queries_one_node_or_all_through_the_kubelet(
    shop: Nodes, ztctl: Ztctl, via: str
) -> None:
    wait_until(lambda: len(_doors(shop)) == 2, "agents name their ports")
    answer = ztctl("--transport", via, "status", "-o", "json")
    assert {one["node"] for one in _nodes(answer)} == {"node-1", "node-2"}
    done = ztctl("--transport", via, "--node", "node-1", "pod", "list", "-o", "json")
    assert "client" in done.stdout
    assert "server" not in done.stdout


def _doors(cluster: Nodes) -> dict[str, AdminEndpoint]:
    """The admin annotations of the agent pods, by node."""
    words = ("get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=ztunnel-agent")
    pods = json.loads(cluster.server.kubectl(*words, "-o", "json"))["items"]
    said = {
        pod["spec"]["nodeName"]: parse(pod["metadata"].get("annotations", {}).get(ANNOTATION, ""))
        for pod in pods
    }
    return {node: door for node, door in said.items() if door is not None}


def test_port_forward_permission_allows_queries_only(shop: Nodes, ztctl: Ztctl) -> None:
    words = ("create", "rolebinding", "eve", f"--role={ACCOUNT}", "--user=eve", "-n", SYSTEM)
    shop.server.kubectl(*words)
    eve = shop.server.kubeconfig("eve")
    answer = ztctl("status", "-o", "json", login=eve)
    assert {one["node"] for one in _nodes(answer)} == {"node-1", "node-2"}
    refused = ztctl("--transport", "exec", "--node", "node-1", "status", login=eve, code=3)
    hint = "grant the permission to get and create pods/exec in namespace ztunnel-system"
    assert hint in refused.stderr
    mallory = shop.server.kubeconfig("mallory")
    assert "403" in ztctl("status", login=mallory, code=1).stderr


def test_node_processes_are_rejected_at_the_admin_port(shop: Nodes) -> None:
    """With the token of a pod, over valid TLS: like any process in the network of the node."""
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
    assert answer.startswith("no: the API server rejected the token")
    assert end == "b''"
    elsewhere = ("python3", "-c", f"import socket; socket.create_connection(('{{}}', {door.port}))")
    for address in (shop.machines[0].address, "10.244.1.1"):
        with pytest.raises(AssertionError, match="ConnectionRefusedError"):
            shop.machines[0].run(*elsewhere[:2], elsewhere[2].format(address))


def _nodes(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else [found]


def test_upgrade_fails_no_connection(shop: Nodes, ztctl: Ztctl) -> None:
    with requests(shop, SPACE, "client", address_of(shop, SPACE, "server")) as answers:
        wait_until(lambda: len(answers) > 20)
        ztctl("install", "--image", NEXT, timeout=200)
        after = len(answers)
        wait_until(lambda: len(answers) > after + 20)
    failed = [(number, answer) for number, answer in enumerate(answers) if answer != GREETING]
    assert failed == [], f"{failed}\n{after} answers when all was rolled out\n{shop.diagnostics()}"
    for name in (
        "daemonset/ztunnel-agent",
        "daemonset/ztunnel-proxy",
        "deployment/ztunnel-controller",
    ):
        path = "jsonpath={.spec.template.spec.containers[*].image}"
        assert shop.server.kubectl("get", "-n", SYSTEM, name, "-o", path) == NEXT


def test_uninstall_leaves_nothing_in_the_kernel(shop: Nodes, ztctl: Ztctl) -> None:
    for machine in shop.machines:
        assert "links" in machine.run("ls", "/sys/fs/bpf/ztunnel")
    ztctl("uninstall", timeout=200)
    for machine in shop.machines:
        assert "ztunnel" not in machine.run("ls", "/sys/fs/bpf")
        assert machine.run("ls", "/run/ztunnel") == ""
    assert ask(shop, SPACE, "client", address_of(shop, SPACE, "server")) == GREETING  # plaintext
