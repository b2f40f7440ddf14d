# SPDX-License-Identifier: Apache-2.0
"""`ztctl install` and `uninstall` against a real API server.

It has no controllers and no kubelet: where a roll-out is waited for, the test writes the status
that they would write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import ROOT, ApiServer
from ztctl.cluster import manifests
from ztctl.main import cli
from ztunnel.kube.constants import NAMESPACE

Ztctl = Callable[..., Result]
DONE = {
    "daemonset": {
        "observedGeneration": 99,
        "desiredNumberScheduled": 3,
        "currentNumberScheduled": 3,
        "updatedNumberScheduled": 3,
        "numberAvailable": 3,
        "numberReady": 3,
        "numberMisscheduled": 0,
    },
    "deployment": {
        "observedGeneration": 99,
        "replicas": 2,
        "updatedReplicas": 2,
        "availableReplicas": 2,
        "readyReplicas": 2,
    },
}


@pytest.fixture
def ztctl(fresh_server: ApiServer) -> Ztctl:
    """`ztctl ARGUMENTS... --kubeconfig <the server's>`."""

    def run(*arguments: str) -> Result:
        where = ("--kubeconfig", str(fresh_server.admin_kubeconfig))
        return CliRunner().invoke(cli, [*arguments, *where])

    return run


def rollout(server: ApiServer, kind: str, name: str) -> None:
    """Set the status as controllers and kubelets do."""
    patch = yaml.safe_dump({"status": DONE[kind]})
    wait_until(lambda: server.try_kubectl("-n", NAMESPACE, "get", kind, name).returncode == 0)
    words = ("--subresource=status", "--type=merge", "--patch", patch)
    server.kubectl("-n", NAMESPACE, "patch", kind, name, *words)


def objects(server: ApiServer) -> dict[str, Any]:
    """The server's state of all objects in deploy/, by title."""
    found: dict[str, Any] = {}
    for obj in manifests.load():
        space = obj["metadata"].get("namespace")
        where = ("-n", space) if space else ()
        words = ("get", obj["kind"], obj["metadata"]["name"], "-o", "yaml", *where)
        done = server.try_kubectl(*words)
        if done.returncode == 0:
            found[manifests.title(obj)] = yaml.safe_load(done.stdout)
    return found


def test_dry_run_is_validated_by_server_and_changes_nothing(
    ztctl: Ztctl, fresh_server: ApiServer
) -> None:
    done = ztctl("install", "--dry-run")
    assert done.exit_code == 0, done.output
    assert len(_results(done.output)) == len(manifests.load())
    assert objects(fresh_server) == {}
    fresh_server.kubectl("create", "namespace", NAMESPACE)
    done = ztctl("install", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "not validated" not in done.output  # all objects could be validated now
    assert set(objects(fresh_server)) == {f"Namespace {NAMESPACE}"}


def test_install_is_idempotent(ztctl: Ztctl, fresh_server: ApiServer) -> None:
    first = ztctl("install", "--no-wait")
    assert first.exit_code == 0, first.output
    assert set(objects(fresh_server)) == {manifests.title(obj) for obj in manifests.load()}
    again = ztctl("install", "--no-wait")
    assert {line.split()[-1] for line in _results(again.output)} == {"unchanged"}


def test_existing_istio_crds_are_not_replaced(ztctl: Ztctl, fresh_server: ApiServer) -> None:
    theirs = next(obj for obj in manifests.load() if obj["kind"] == manifests.CRD)
    theirs["metadata"]["labels"] = {"app": "istio"}
    fresh_server.apply(theirs)
    done = ztctl("install", "--no-wait")
    assert done.exit_code == 0, done.output
    assert "skipped: exists and is not managed by ztctl" in done.output
    there = objects(fresh_server)[manifests.title(theirs)]
    assert there["metadata"]["labels"] == {"app": "istio"}


def test_kustomize_produces_same_objects(ztctl: Ztctl, fresh_server: ApiServer) -> None:
    kustomized = [*yaml.safe_load_all(fresh_server.kubectl("kustomize", str(ROOT / "deploy")))]
    printed = [*yaml.safe_load_all(ztctl("install", "--dry-run", "-o", "yaml").stdout)]

    def by_title(found: list[Any]) -> dict[str, Any]:
        return {manifests.title(obj): obj for obj in found}

    assert by_title(kustomized) == by_title(printed)


def test_install_waits_until_every_workload_is_ready(ztctl: Ztctl, fresh_server: ApiServer) -> None:
    results: list[Result] = []
    waiting = threading.Thread(target=lambda: results.append(ztctl("install", "--timeout=90")))
    waiting.start()
    for kind, name in (
        ("deployment", "ztunnel-controller"),
        ("daemonset", "ztunnel-agent"),
        ("daemonset", "ztunnel-proxy"),
        ("daemonset", "ztunnel-gateway"),
    ):
        rollout(fresh_server, kind, name)
    waiting.join(100)
    assert results[0].exit_code == 0, results[0].output
    assert "DaemonSet ztunnel-system/ztunnel-agent: 3 of 3 ready" in results[0].output
    assert "mesh ready" in results[0].output


def test_install_timeout_fails_with_hint(ztctl: Ztctl) -> None:
    done = ztctl("install", "--timeout=1")
    assert done.exit_code == 1
    assert "not ready after 1 s" in done.output
    assert "DaemonSet ztunnel-system/ztunnel-proxy" in done.output
    assert "get events" in done.output


def test_config_file_settings_are_applied(
    ztctl: Ztctl, fresh_server: ApiServer, tmp_path: Path
) -> None:
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text(
        "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig:\n"
        "    enableAmbient: true\n    trustDomain: example.org\n"
        "    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"
    )
    done = ztctl("install", "-f", str(mesh), "--no-wait")
    assert done.exit_code == 0, done.output
    agent = objects(fresh_server)["DaemonSet ztunnel-system/ztunnel-agent"]
    arguments = agent["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--trust-domain=example.org", "--outbound-traffic-policy=REGISTRY_ONLY"} <= {*arguments}
    changed = ztctl("install", "--no-wait")
    assert "DaemonSet ztunnel-system/ztunnel-agent" in changed.output
    assert " configured" in changed.output


def test_fields_of_other_managers_require_force(ztctl: Ztctl, fresh_server: ApiServer) -> None:
    assert ztctl("install", "--no-wait").exit_code == 0
    scale = ("-n", NAMESPACE, "scale", "deployment", "ztunnel-controller", "--replicas=5")
    fresh_server.kubectl(*scale)
    refused = ztctl("install", "--no-wait")
    assert refused.exit_code == 1
    assert "--force takes ownership" in refused.output
    assert ztctl("install", "--no-wait", "--force").exit_code == 0
    controller = objects(fresh_server)["Deployment ztunnel-system/ztunnel-controller"]
    assert controller["spec"]["replicas"] == 2


def test_user_without_permissions_sees_missing_permission(fresh_server: ApiServer) -> None:
    kubeconfig = fresh_server.kubeconfig("alice", ["no-permissions"])
    done = CliRunner().invoke(cli, ["install", "--kubeconfig", str(kubeconfig)])
    assert done.exit_code == 1
    assert "403" in done.output
    assert "administrator" in done.output


def test_agent_passes_pod_security_of_privileged_namespace(
    ztctl: Ztctl, fresh_server: ApiServer
) -> None:
    """The API server's Pod Security admission checks the pod templates."""
    assert ztctl("install", "--no-wait").exit_code == 0
    for obj in manifests.load():
        if obj["kind"] not in manifests.WORKLOAD_KINDS:
            continue
        pod = {"apiVersion": "v1", "kind": "Pod", **obj["spec"]["template"]}
        name = obj["metadata"]["name"]
        pod["metadata"] = {"name": name, "namespace": NAMESPACE}
        fresh_server.kubectl("create", "-f", "-", stdin=yaml.safe_dump(pod))
        restricted = {**pod, "metadata": {"name": name, "namespace": "strict"}}
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        fresh_server.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": "strict", "labels": labels},
            }
        )
        tried = fresh_server.try_kubectl("create", "-f", "-", stdin=yaml.safe_dump(restricted))
        # only the controller is restricted; the proxy mounts a host directory
        assert (tried.returncode == 0) == (name == "ztunnel-controller"), tried.stderr


def test_uninstall_cleans_nodes_before_removing_proxies(
    ztctl: Ztctl, fresh_server: ApiServer
) -> None:
    assert ztctl("install", "--no-wait").exit_code == 0
    fresh_server.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio-ca-root-cert", "namespace": "default"},
            "data": {"root-cert.pem": "another controller's"},
        }
    )
    results: list[Result] = []
    removing = threading.Thread(target=lambda: results.append(ztctl("uninstall", "--timeout=60")))
    removing.start()
    wait_until(lambda: _is_there(fresh_server, "daemonset", "ztunnel-cleaner"))
    assert not _is_there(fresh_server, "daemonset", "ztunnel-agent")
    assert _is_there(fresh_server, "daemonset", "ztunnel-proxy")  # still carries traffic
    rollout(fresh_server, "daemonset", "ztunnel-cleaner")
    removing.join(70)
    assert results[0].exit_code == 0, results[0].output
    left = objects(fresh_server)
    kept = {title for title in left if title.startswith("CustomResourceDefinition ")}
    assert {title.split()[1].partition(".")[0] for title in kept} == {
        "authorizationpolicies",
        "destinationrules",
        "peerauthentications",
        "requestauthentications",
        "serviceentries",
        "telemetries",
        "virtualservices",
    }  # and the objects of users
    assert set(left) - kept <= {f"Namespace {NAMESPACE}"}  # a controller would finish its deletion
    assert all("deletionTimestamp" in left[title]["metadata"] for title in left.keys() - kept)
    assert _is_there(fresh_server, "configmap", "istio-ca-root-cert", "default")


def test_uninstall_without_installation_succeeds(ztctl: Ztctl) -> None:
    done = ztctl("uninstall")
    assert (done.exit_code, done.output) == (0, "nothing to remove\n")


def test_node_cleanup_failure_stops_uninstall_with_hint(ztctl: Ztctl) -> None:
    assert ztctl("install", "--no-wait").exit_code == 0
    stuck = ztctl("uninstall", "--timeout=1")
    assert stuck.exit_code == 1
    assert "--keep-nodes" in stuck.output
    assert ztctl("uninstall", "--keep-nodes").exit_code == 0


def _is_there(server: ApiServer, kind: str, name: str, namespace: str = NAMESPACE) -> bool:
    return server.try_kubectl("-n", namespace, "get", kind, name).returncode == 0


def _results(output: str) -> list[str]:
    """The line of each object: without the note that the Gateway API is missing."""
    lines = output.splitlines()
    notes = [line for line in lines if line.startswith("note: the cluster has no Gateway API")]
    assert len(notes) == 1
    return [line for line in lines if line not in notes]
