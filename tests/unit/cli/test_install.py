# SPDX-License-Identifier: Apache-2.0
"""`ztctl install` without a cluster: the objects, their settings and their image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cli.conftest import Ztctl
from ztctl.cluster import manifests
from ztctl.cluster.api_client import path_of, rollout_progress
from ztctl.cluster.manifests import GatewayOptions
from ztctl.cluster.mesh_config import MeshSettings, OutboundTrafficPolicy

Object = dict[str, Any]
CRD = "CustomResourceDefinition"


def _containers(objects: list[Object]) -> dict[str, Object]:
    return {
        container["name"]: container
        for obj in objects
        if obj["kind"] in manifests.WORKLOAD_KINDS
        for container in obj["spec"]["template"]["spec"]["containers"]
    }


def test_every_file_of_deploy_is_installed() -> None:
    directory = manifests.source_dir()
    files = {str(path.relative_to(directory)) for path in directory.rglob("*.yaml")}
    files -= {manifests.KUSTOMIZATION}
    named = yaml.safe_load((directory / manifests.KUSTOMIZATION).read_text("utf-8"))["resources"]
    assert set(named) == files
    assert len(named) == len(files)


def test_namespace_comes_first_and_workloads_last() -> None:
    kinds = [obj["kind"] for obj in manifests.load()]
    assert next(kind for kind in kinds if kind != CRD) == "Namespace"
    first = min(kinds.index(kind) for kind in manifests.WORKLOAD_KINDS)
    assert not {"ServiceAccount", "ClusterRole", "RoleBinding"} & set(kinds[first:])


def test_every_object_has_our_label_and_a_path() -> None:
    for obj in manifests.load():
        assert obj["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ztunnel"
        assert path_of(obj).startswith("/api")


def test_settings_become_flags_of_the_components_that_have_them() -> None:
    settings = MeshSettings(
        "example.org",
        "policies",
        ({"matchLabels": {"mesh": "yes"}},),
        OutboundTrafficPolicy.REGISTRY_ONLY,
    )
    images = ("registry.example/ztunnel:1", "registry.example/ztunnel-envoy:1")
    containers = _containers(manifests.load_configured(settings, *images))
    agent, signer, proxy = (containers[name]["args"] for name in ("agent", "controller", "proxy"))
    assert "--trust-domain=example.org" in agent
    assert "--trust-domain=example.org" in signer
    assert "--trust-domain=cluster.local" not in agent + signer
    assert "--root-namespace=policies" in agent
    assert "--root-namespace=policies" in signer
    assert "--proxy-image=registry.example/ztunnel-envoy:1" in signer
    assert '--discovery-selectors=[{"matchLabels":{"mesh":"yes"}}]' in agent
    assert "--outbound-traffic-policy=REGISTRY_ONLY" in agent
    assert len(proxy) == len(_containers(manifests.load())["proxy"]["args"])
    assert {each["image"] for each in containers.values()} == {"registry.example/ztunnel:1"}


@pytest.mark.parametrize("name", ["agent", "proxy", "gateway", "controller"])
def test_flags_exist_in_the_command_line_of_the_component(name: str) -> None:
    from click.testing import CliRunner

    from ztunnel.main import cli

    settings = MeshSettings(
        "a.b", "c", ({"matchLabels": {"d": "e"}},), OutboundTrafficPolicy.REGISTRY_ONLY
    )
    options = GatewayOptions(("a",), ("b",))
    arguments = _containers(manifests.load_configured(settings, None, "e", options))[name]["args"]
    assert arguments[0] == name
    known = CliRunner().invoke(cli, [name, "--help"]).output
    for option in arguments[1:]:
        assert option.partition("=")[0] in known


def _certificate_bindings(objects: list[manifests.Object]) -> list[tuple[str, str]]:
    return [
        (obj["kind"], obj["metadata"].get("namespace", ""))
        for obj in objects
        if obj["kind"].endswith("Binding") and obj["metadata"]["name"] == manifests.CERTIFICATES
    ]


@pytest.mark.parametrize(
    ("options", "bindings", "flags"),
    [
        (GatewayOptions(), [("ClusterRoleBinding", "")], []),
        (
            GatewayOptions(("a", "b"), ("metal",)),
            [("RoleBinding", "a"), ("RoleBinding", "b")],
            [
                "--host-port-namespace=metal",
                "--certificate-namespace=a",
                "--certificate-namespace=b",
            ],
        ),
        (GatewayOptions(()), [], ["--no-gateway-certificates"]),
    ],
)
def test_rights_of_gateways_are_limited_at_installation(
    options: GatewayOptions, bindings: list[tuple[str, str]], flags: list[str]
) -> None:
    objects = manifests.load_configured(MeshSettings(), None, None, options)
    assert _certificate_bindings(objects) == bindings
    before = _containers(manifests.load())["controller"]["args"]
    assert _containers(objects)["controller"]["args"] == [*before, *flags]


def test_all_but_the_agent_run_unprivileged() -> None:
    for name in ("proxy", "gateway", "controller"):
        context = _containers(manifests.load())[name]["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert "privileged" not in context


def test_dry_run_with_yaml_prints_objects_without_a_cluster(ztctl: Ztctl) -> None:
    done = ztctl("install", "--dry-run", "-o", "yaml")
    assert done.exit_code == 0
    assert [*yaml.safe_load_all(done.stdout)] == manifests.load()


def test_json_output_is_a_list_object_for_kubectl(ztctl: Ztctl, tmp_path: Path) -> None:
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text(
        "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n"
        "spec: {meshConfig: {trustDomain: example.org, accessLogFile: x}}\n"
    )
    done = ztctl("install", "-f", str(mesh), "--dry-run", "-o", "json")
    printed = json.loads(done.stdout)
    assert (printed["kind"], done.exit_code) == ("List", 0)
    assert "example.org" in done.stdout
    assert "accessLogFile" in done.stderr  # standard output has only the objects


def test_invalid_document_is_an_error_with_file_and_kind(ztctl: Ztctl, tmp_path: Path) -> None:
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text("apiVersion: v1\nkind: Pod\n")
    done = ztctl("install", "-f", str(mesh), "--dry-run")
    assert done.exit_code == 1
    assert "mesh.yaml" in done.output
    assert "IstioOperator" in done.output


def test_unreachable_cluster_is_an_error_with_url_and_hint(ztctl: Ztctl, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: c}}]\nusers: [{name: c, user: {}}]\n"
    )
    done = ztctl("install", "--kubeconfig", str(kubeconfig))
    assert done.exit_code == 3
    assert "https://127.0.0.1:1" in done.output
    assert "--context" in done.output


ROLLOUTS: dict[str, tuple[Object | None, bool, str]] = {
    "not found": (None, False, "not found"),
    "not yet observed": (
        {"kind": "DaemonSet", "metadata": {"generation": 1}, "spec": {}},
        False,
        "waiting for the cluster's controllers",
    ),
    "an old generation observed": (
        {
            "kind": "DaemonSet",
            "metadata": {"generation": 2},
            "spec": {},
            "status": {"observedGeneration": 1, "desiredNumberScheduled": 1, "numberAvailable": 1},
        },
        False,
        "waiting for the cluster's controllers",
    ),
    "half of the nodes": (
        {
            "kind": "DaemonSet",
            "metadata": {"generation": 1},
            "spec": {},
            "status": {
                "observedGeneration": 1,
                "desiredNumberScheduled": 4,
                "updatedNumberScheduled": 4,
                "numberAvailable": 2,
            },
        },
        False,
        "2 of 4 ready",
    ),
    "old pods that are ready": (
        {
            "kind": "Deployment",
            "metadata": {"generation": 2},
            "spec": {"replicas": 2},
            "status": {"observedGeneration": 2, "availableReplicas": 2, "updatedReplicas": 1},
        },
        False,
        "1 of 2 updated",
    ),
    "done": (
        {
            "kind": "Deployment",
            "metadata": {"generation": 2},
            "spec": {"replicas": 2},
            "status": {"observedGeneration": 2, "availableReplicas": 2, "updatedReplicas": 2},
        },
        True,
        "2 of 2 ready",
    ),
}


@pytest.mark.parametrize("case", ROLLOUTS)
def test_progress_of_a_rollout(case: str) -> None:
    obj, done, text = ROLLOUTS[case]
    progress = rollout_progress(obj)
    assert (progress.is_done, progress.text) == (done, text)
