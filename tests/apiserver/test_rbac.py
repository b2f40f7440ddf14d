# SPDX-License-Identifier: Apache-2.0
"""The agent's permissions in deploy/ are sufficient and minimal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.support.apiserver.gateway_crds import install_crds
from tests.support.apiserver.objects import ambient, endpoints, namespace, pod, service
from tests.support.apiserver.rbac_fixture import AGENT, SYSTEM, agent_kubeconfig, grant, manifest
from tests.support.apiserver.server import ApiServer
from tests.support.apiserver.source_runner import SourceRunner
from tests.support.waiting import wait_until
from ztunnel.controller.l7.gateways.certificate_watches import certificate_resources
from ztunnel.controller.l7.watches import l7_resources
from ztunnel.controller.policy_status_controller import policy_resources
from ztunnel.kube.client.access import Access
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.sources.api_server import watched_resources
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.l7.deployment import DeploymentSettings, LiveState, gateway_resources
from ztunnel.l7.objects import L7Object
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION
from ztunnel.mesh.model import TunnelProtocol, Workload

FOREIGN = {
    "secrets": "list secrets -A",
    "one pod": "get pods/a -n rights",
    "config maps": "list configmaps -A",
    "one account": "get serviceaccounts/a -n rights",
    "create pods": "create pods -n rights",
    "change pods": "patch pods -n rights",
    "delete pods": "delete pods -n rights",
    "exec": "create pods --subresource=exec -n rights",
    "change services": "patch services -n rights",
    "change nodes": "patch nodes",
    "change node status": "patch nodes --subresource=status",
    "tokens": "create serviceaccounts --subresource=token -n rights",
    "read events": "list events -A",
    "roles": "list clusterroles",
    "escalate": "bind clusterroles",
    "policies": "patch authorizationpolicies.security.istio.io -n rights",
}


@pytest.fixture(scope="module")
def agent(server: ApiServer) -> Path:
    """The kubeconfig of the agent on n1; in namespace `rights` pod `a` is on n1 and `b` on n2."""
    grant(server, "n1", "n2")
    server.apply(
        ambient("rights"),
        pod("a", "rights", "10.6.0.1", annotations={"owner": "me"}),
        pod("b", "rights", "10.6.0.2", on="n2"),
        service("a", "rights"),
        endpoints("a", "rights", ("a", "10.6.0.1")),
    )
    kubeconfig = agent_kubeconfig(server, "n1")
    allowed = ("auth", "can-i", "list", "pods", "-A")
    wait_until(
        lambda: server.try_kubectl(*allowed, kubeconfig=kubeconfig).returncode == 0,
        "rights",
        timeout_s=20,
    )
    wait_until(
        lambda: _is_guarded(server, server.token(SYSTEM, AGENT, pod="agent-n1")),
        "the admission policy is in force",
        timeout_s=30,
    )
    return kubeconfig


def _is_guarded(server: ApiServer, token: str) -> bool:
    """The API server compiles an admission policy shortly after it was created."""
    return "own node" in _patch(
        server, token, "b", {"annotations": {REDIRECTION_ANNOTATION: "probe"}}
    )


def _patch(
    server: ApiServer, token: str, name: str, metadata: object, status: object = None
) -> str:
    """The API server's error for a patch of a pod's status; empty on success."""
    path = f"/api/v1/namespaces/rights/pods/{name}/status"
    try:
        server.request("PATCH", path, {"metadata": metadata, "status": status or {}}, token=token)
    except HTTPError as response:
        return response.read().decode()
    return ""


@pytest.fixture(scope="module")
def token(server: ApiServer, agent: Path) -> str:
    """A token of the agent on n1."""
    return server.token(SYSTEM, AGENT, pod="agent-n1")


def test_agent_role_suffices_to_watch_mesh(agent: Path) -> None:
    with SourceRunner(agent) as following:
        assert following.workload("a", "rights").protocol is TunnelProtocol.HBONE
        found = following.state.service("rights/a")
        assert found is not None
        assert len(found.endpoints) == 1
        assert following.errors() == {}


def test_agent_role_equals_watched_resources() -> None:
    role = next(obj for obj in manifest("agent-read.yaml") if obj["kind"] == "ClusterRole")
    read = {
        (group, resource)
        for rule in role["rules"]
        if rule["verbs"] == ["list", "watch"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    asked = set()
    for resource in watched_resources("n1"):
        *_, group, _, plural = ["", *resource.path.strip("/").split("/")]
        asked.add(("" if group == "api" else group, plural))
    assert read == asked
    others = [rule for rule in role["rules"] if rule["verbs"] != ["list", "watch"]]
    assert others == [
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    ]


@pytest.mark.parametrize("what", FOREIGN)
def test_agent_has_no_other_permissions(server: ApiServer, agent: Path, what: str) -> None:
    verb, *words = FOREIGN[what].split()
    done = server.try_kubectl("auth", "can-i", verb, *words, kubeconfig=agent)
    assert done.stdout.strip() == "no", done.stdout + done.stderr


def test_agent_annotates_pods_of_own_node_only(server: ApiServer, agent: Path) -> None:
    with SourceRunner(agent) as following:
        own, foreign = following.workload("a", "rights"), following.workload("b", "rights")
    marker = PodWriter(Access(agent).client(), "n1")
    try:
        assert marker.annotate_captured(own, True)
        assert _annotations(server, "a") == {"owner": "me", REDIRECTION_ANNOTATION: "enabled"}
        assert marker.annotate_captured(own, False)
        assert _annotations(server, "a") == {"owner": "me"}
        with pytest.raises(ApiError, match="own node"):
            marker.annotate_captured(foreign, True)
    finally:
        marker.close()


def test_event_in_a_namespace_that_is_being_deleted_is_no_error(
    server: ApiServer, agent: Path
) -> None:
    server.apply(namespace("ending"))
    metadata = {"name": "hold", "namespace": "ending", "finalizers": ["example.com/hold"]}
    server.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    server.kubectl("delete", "namespace", "ending", "--wait=false")
    writer = PodWriter(Access(agent).client(), "n1")
    pod_there = Workload(
        uid="u",
        pod_uid="p",
        name="a",
        namespace="ending",
        service_account="default",
        node="n1",
        addresses=(),
    )
    try:
        writer.emit_event(pod_there, "MeshCaptureFailed", "a test")
    finally:
        writer.close()
        server.kubectl(
            *("patch", "configmap", "hold", "-n", "ending", "--type=merge"),
            *("-p", '{"metadata":{"finalizers":null}}'),
        )
    assert server.kubectl("get", "events", "-n", "ending", "-o", "name") == ""


@pytest.mark.parametrize(
    ("metadata", "status", "error"),
    [
        ({"annotations": {"owner": "you"}}, {}, "only ambient.istio.io/redirection"),
        ({"annotations": {"owner": None}}, {}, "only ambient.istio.io/redirection"),
        ({"annotations": {"sidecar.istio.io/status": "x"}}, {}, "only ambient"),
        ({"labels": {"app": "other"}}, {}, "labels"),
        ({"finalizers": ["example.com/stay"]}, {}, "finalizers"),
        ({}, {"podIP": "10.6.0.9"}, "status"),
        ({}, {"phase": "Failed"}, "status"),
    ],
)
def test_agent_token_cannot_change_other_pod_fields(
    server: ApiServer, token: str, metadata: object, status: object, error: str
) -> None:
    assert error in _patch(server, token, "a", metadata, status)


def test_token_without_node_cannot_annotate_pods(server: ApiServer, token: str) -> None:
    loose = server.token(SYSTEM, AGENT)
    error = _patch(server, loose, "a", {"annotations": {REDIRECTION_ANNOTATION: "enabled"}})
    assert "own node" in error


def _annotations(server: ApiServer, name: str) -> dict[str, str]:
    found = json.loads(server.kubectl("-n", "rights", "get", "pod", name, "-o", "json"))
    annotations: dict[str, str] = found["metadata"].get("annotations", {})
    return annotations


@pytest.fixture(scope="module")
def controller_token(server: ApiServer) -> str:
    """A token of the controller, once its admission policy is in force."""
    server.apply(namespace(SYSTEM))
    server.apply(*manifest("controller-rbac.yaml"), *manifest("controller-guard.yaml"))
    token = server.token(SYSTEM, "ztunnel-controller")
    wait_until(
        lambda: "may create only" in _create(server, token, SYSTEM, "ConfigMap", "probe"),
        "the admission policy is in force",
        timeout_s=30,
    )
    return token


def _create(server: ApiServer, token: str, where: str, kind: str, name: str) -> str:
    """The API server's error for a dry-run creation; empty on success."""
    body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{where}/{kind.lower()}s?dryRun=All"
    try:
        server.request("POST", path, body, token=token)
    except HTTPError as response:
        return response.read().decode()
    return ""


def test_controller_creates_only_secret_of_ca(server: ApiServer, controller_token: str) -> None:
    assert _create(server, controller_token, SYSTEM, "Secret", "ztunnel-ca") == ""
    assert "may write only" in _create(server, controller_token, SYSTEM, "Secret", "stolen")
    assert "forbidden" in _create(server, controller_token, "default", "Secret", "ztunnel-ca")


def test_controller_creates_only_config_maps_of_roots(
    server: ApiServer, controller_token: str
) -> None:
    allowed = _create(server, controller_token, "default", "ConfigMap", "istio-ca-root-cert")
    assert allowed == ""
    refused = _create(server, controller_token, "default", "ConfigMap", "coredns")
    assert "may create only" in refused


def _deployment(managed: bool = True, **pod: object) -> dict[str, Any]:
    """What runs a Gateway, as the controller applies it."""
    account = pod.pop("serviceAccountName", "way")
    gateway = L7Object(kind="Gateway", namespace="default", name="way")
    live = LiveState(uid="12345678-1234-1234-1234-123456789012")
    found = gateway_resources(gateway, DeploymentSettings(), live)[1]
    found["spec"]["template"]["spec"] |= {"serviceAccountName": account, **pod}
    if not managed:
        del found["metadata"]["ownerReferences"]
    return found


UNPRIVILEGED = {
    "name": "a",
    "image": "a",
    "securityContext": {"allowPrivilegeEscalation": False},
}
KEY = {"name": "other", "key": "password"}


def _create_deployment(server: ApiServer, token: str, body: dict[str, Any]) -> str:
    path = "/apis/apps/v1/namespaces/default/deployments?dryRun=All"
    try:
        server.request("POST", path, body, token=token)
    except HTTPError as response:
        return response.read().decode()
    return ""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (_deployment(), ""),
        (_deployment(managed=False), "belong to a Gateway"),
        (_deployment(hostNetwork=True), "no privileges"),
        (_deployment(hostPID=True), "no privileges"),
        (_deployment(serviceAccountName="admin"), "no other service account"),
        (_deployment(volumes=[{"name": "a", "hostPath": {"path": "/"}}]), "no volume but"),
        (_deployment(volumes=[{"name": "a", "secret": {"secretName": "other"}}]), "no volume but"),
        (_deployment(volumes=[{"name": "a", "secret": {"secretName": "way-certificates"}}]), ""),
        (
            _deployment(initContainers=[{"name": "a", "image": "a"}]),
            "no privileges",
        ),
        (
            _deployment(
                containers=[{"name": "a", "image": "a", "securityContext": {"privileged": True}}]
            ),
            "no privileges",
        ),
        *(
            (_deployment(containers=[{**UNPRIVILEGED, **source}]), "no variables from")
            for source in (
                {"envFrom": [{"secretRef": {"name": "other"}}]},
                {"env": [{"name": "A", "valueFrom": {"secretKeyRef": KEY}}]},
                {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": KEY}}]},
            )
        ),
    ],
)
def test_controller_creates_only_deployments_of_gateways(
    server: ApiServer, controller_token: str, body: dict[str, Any], error: str
) -> None:
    wait_until(
        lambda: (
            "belong to a Gateway"
            in _create_deployment(server, controller_token, _deployment(managed=False))
        ),
        "the admission policy is in force",
        timeout_s=30,
    )
    found = _create_deployment(server, controller_token, body)
    assert error in found
    assert bool(found) is bool(error)


@pytest.mark.parametrize("verb", ["DELETE", "PATCH"])
def test_controller_cannot_change_objects_of_others(
    server: ApiServer, controller_token: str, verb: str
) -> None:
    server.apply(service("theirs", "default"))
    path = "/api/v1/namespaces/default/services/theirs"
    body = {"spec": {"selector": {"app": "evil"}}} if verb == "PATCH" else None
    with pytest.raises(HTTPError) as error:
        server.request(verb, path, body, token=controller_token)
    assert "belong to a Gateway" in error.value.read().decode()


@pytest.mark.parametrize(
    ("patch", "error"),
    [
        ({"metadata": {"annotations": {"ztunnel.dev/ca-certificates": "x"}}}, ""),
        ({"metadata": {"annotations": {"owner": "you"}}}, "only the annotation"),
        ({"metadata": {"annotations": {"owner": None}}}, "only the annotation"),
        ({"metadata": {"labels": {"app": "x"}}}, "only the annotation"),
        ({"spec": {"validation": {"hostname": "evil.example.com"}}}, "only the annotation"),
    ],
)
def test_controller_changes_only_the_annotation_of_backend_tls_policies(
    server: ApiServer, controller_token: str, patch: dict[str, Any], error: str
) -> None:
    install_crds(server)
    validation = {"hostname": "a.example.com", "wellKnownCACertificates": "System"}
    targets = [{"group": "", "kind": "Service", "name": "web"}]
    policy = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "BackendTLSPolicy",
        "metadata": {"name": "tls", "namespace": "default", "annotations": {"owner": "me"}},
        "spec": {"targetRefs": targets, "validation": validation},
    }
    server.apply(policy)

    def answer(body: dict[str, Any]) -> str:
        path = "/apis/gateway.networking.k8s.io/v1/namespaces/default/backendtlspolicies/tls"
        try:
            server.request("PATCH", f"{path}?dryRun=All", body, token=controller_token)
        except HTTPError as response:
            return response.read().decode()
        return ""

    probe = {"metadata": {"labels": {"app": "probe"}}}
    wait_until(
        lambda: "only the annotation" in answer(probe), "the policy is in force", timeout_s=30
    )
    found = answer(patch)
    assert error in found
    assert bool(found) is bool(error)


def test_controller_role_equals_watched_resources() -> None:
    role = next(obj for obj in manifest("controller-rbac.yaml") if obj["kind"] == "ClusterRole")
    granted = {
        (group, resource)
        for rule in role["rules"]
        if {"list", "watch"} <= set(rule["verbs"]) and "resourceNames" not in rule
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    asked = set()
    for resource in (*l7_resources(), *policy_resources()):
        *_, group, _, plural = ["", *resource.path.strip("/").split("/")]
        asked.add(("" if group == "api" else group, plural))
    others = {("", "namespaces"), ("certificates.k8s.io", "certificatesigningrequests")}
    assert granted == asked | others


def test_controller_role_of_certificates_equals_watched_resources() -> None:
    role = manifest("controller-certificates.yaml")[0]
    watched = {
        resource
        for rule in role["rules"]
        if "watch" in rule["verbs"]
        for resource in rule["resources"]
    }
    asked = certificate_resources(frozenset({"*"}))
    assert watched == {resource.path.rpartition("/")[2] for _, resource in asked}
