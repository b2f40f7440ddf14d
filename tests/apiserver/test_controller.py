# SPDX-License-Identifier: Apache-2.0
"""`ztunnel controller` on a real API server, with the permissions of deploy/."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from kubernetes import client

from tests.support.apiserver.control_plane import (
    ControlPlane,
    manifests,
    requests_api,
    wait_until,
)
from tests.support.apiserver.server import ApiServer
from ztunnel.identity.csr import new_request
from ztunnel.identity.csr_signer import CsrRejected
from ztunnel.kube.constants import NAMESPACE, ROOTS_CONFIGMAP
from ztunnel.kube.writers.csr_client import SigningError

WEB = "spiffe://cluster.local/ns/shop/sa/web"
AWAY = "spiffe://cluster.local/ns/shop/sa/away"
HOST = "spiffe://cluster.local/ns/shop/sa/host"
DONE = "spiffe://cluster.local/ns/shop/sa/done"


@pytest.fixture(scope="module")
def mesh(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server for this module with a running controller and some pods."""
    with ApiServer(tmp_path_factory.mktemp("signing"), binaries) as server:
        made = ControlPlane(server)
        made.pod("shop", "web-1", account="web", node="node1")
        made.pod("shop", "away-1", account="away", node="node2")
        made.pod("shop", "host-1", account="host", node="node1", host_network=True)
        made.pod("shop", "done-1", account="done", node="node1", phase="Succeeded")
        with made.controller("tested"):
            yield made


def test_agent_gets_certificate_for_pod_on_own_node(mesh: ControlPlane) -> None:
    issued = mesh.request(mesh.agent("node1"), WEB)
    leaf, *_ = x509.load_pem_x509_certificates(issued.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [WEB]
    assert issued.not_after - issued.not_before <= 3600 + 120
    assert issued.roots_pem == mesh.roots()


def test_agent_gets_no_certificate_for_pod_on_other_node(mesh: ControlPlane) -> None:
    with pytest.raises(CsrRejected, match="no pod of service account shop/away runs on node1"):
        mesh.request(mesh.agent("node1"), AWAY)
    assert mesh.request(mesh.agent("node2"), AWAY).serial


def test_no_certificate_after_pod_is_deleted(mesh: ControlPlane) -> None:
    identity = "spiffe://cluster.local/ns/shop/sa/brief"
    mesh.pod("shop", "brief-1", account="brief", node="node1")
    assert mesh.request(mesh.agent("node1"), identity).serial
    mesh.core.delete_namespaced_pod("brief-1", "shop", grace_period_seconds=0)
    with pytest.raises(CsrRejected, match="NoSuchPodOnNode"):
        mesh.request(mesh.agent("node1"), identity)


def test_no_certificate_after_account_is_deleted(mesh: ControlPlane) -> None:
    identity = "spiffe://cluster.local/ns/shop/sa/leaver"
    mesh.pod("shop", "leaver-1", account="leaver", node="node1")
    assert mesh.request(mesh.agent("node1"), identity).serial
    mesh.core.delete_namespaced_service_account("leaver", "shop")
    with pytest.raises(CsrRejected, match="NoSuchServiceAccount: service account shop/leaver"):
        mesh.request(mesh.agent("node1"), identity)
    mesh.account("shop", "leaver")
    assert mesh.request(mesh.agent("node1"), identity).serial


def test_no_certificate_while_account_is_terminating(mesh: ControlPlane) -> None:
    identity = "spiffe://cluster.local/ns/shop/sa/ending"
    mesh.pod("shop", "ending-1", account="ending", node="node1")
    finalizers = {"metadata": {"finalizers": ["example.com/stay"]}}
    mesh.core.patch_namespaced_service_account("ending", "shop", finalizers)
    mesh.core.delete_namespaced_service_account("ending", "shop")
    with pytest.raises(CsrRejected, match="NoSuchServiceAccount"):
        mesh.request(mesh.agent("node1"), identity)


def _unbound(mesh: ControlPlane) -> Path:
    return mesh.server.account_kubeconfig(NAMESPACE, "ztunnel-agent")


def _node1(mesh: ControlPlane) -> Path:
    return mesh.agent("node1")


def _app(mesh: ControlPlane) -> Path:
    """The token of an app's pod, whose account may create requests."""
    account = {"namespace": "shop", "name": "web"}
    mesh.server.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    grant = client.V1ClusterRoleBinding(
        metadata=client.V1ObjectMeta(name="web-asks"),
        role_ref=client.V1RoleRef(
            api_group="rbac.authorization.k8s.io",
            kind="ClusterRole",
            name="ztunnel-agent-certificates",
        ),
        subjects=[client.RbacV1Subject(kind="ServiceAccount", **account)],
    )
    client.RbacAuthorizationV1Api(mesh.api).create_cluster_role_binding(grant)
    return mesh.server.account_kubeconfig("shop", "web", pod="web-1")


def _csr(
    *identities: str,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    authority: bool = False,
) -> bytes:
    names = [x509.UniformResourceIdentifier(identity) for identity in identities]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if authority:
        limits = x509.BasicConstraints(ca=True, path_length=None)
        builder = builder.add_extension(limits, critical=True)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


REFUSALS: dict[str, tuple[str, Callable[[ControlPlane], Path | None], bytes]] = {
    "cluster-admin is no agent": ("RequesterNotAgent", lambda _: None, _csr(WEB)),
    "an app's own account": ("RequesterNotAgent", _app, _csr(WEB)),
    "the agent's account without a pod": ("TokenNotBoundToNode", _unbound, _csr(WEB)),
    "no such account on the node": ("NoSuchPodOnNode", _node1, _csr(WEB.replace("web", "x"))),
    "another node's pod": ("NoSuchPodOnNode", _node1, _csr(AWAY)),
    "a finished pod": ("NoSuchPodOnNode", _node1, _csr(DONE)),
    "a pod on the host's network": ("PodOnHostNetwork", _node1, _csr(HOST)),
    "another trust domain": (
        "ForeignTrustDomain",
        _node1,
        _csr(WEB.replace("cluster.local", "evil.example")),
    ),
    "two identities": ("RequestNotAllowed", _node1, _csr(WEB, AWAY)),
    "to be a CA": ("RequestNotAllowed", _node1, _csr(WEB, authority=True)),
    "an RSA key": (
        "RequestNotAllowed",
        _node1,
        _csr(WEB, key=rsa.generate_private_key(65537, 2048)),
    ),
    "a P-384 key": (
        "RequestNotAllowed",
        _node1,
        _csr(WEB, key=ec.generate_private_key(ec.SECP384R1())),
    ),
    "no SPIFFE id": ("RequestNotAllowed", _node1, _csr("https://cluster.local/ns/shop/sa/web")),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_invalid_request_is_denied_with_reason(mesh: ControlPlane, case: str) -> None:
    reason, requester, csr = REFUSALS[case]
    name = mesh.submit(requester(mesh), csr)
    assert mesh.outcome(name)[:2] == ("Denied", reason)
    assert not mesh.certificates.read_certificate_signing_request(name).status.certificate


@pytest.mark.parametrize(
    "usages", [["server auth"], ["digital signature", "server auth", "client auth", "cert sign"]]
)
def test_other_usages_are_denied(mesh: ControlPlane, usages: list[str]) -> None:
    name = mesh.submit(mesh.agent("node1"), _csr(WEB), usages=usages)
    assert mesh.outcome(name)[:2] == ("Denied", "UsagesNotAllowed")


def test_requester_cannot_forge_user_or_node(mesh: ControlPlane) -> None:
    """The API server overwrites the requester's user and extra fields."""
    api = requests_api(mesh.server.client(mesh.agent("node2")))
    body = client.V1CertificateSigningRequest(
        metadata=client.V1ObjectMeta(generate_name="forged-"),
        spec=client.V1CertificateSigningRequestSpec(
            request=_encoded(WEB),
            signer_name="ztunnel.dev/workload",
            usages=["digital signature", "server auth", "client auth"],
            extra={"authentication.kubernetes.io/node-name": ["node1"]},
        ),
    )
    name = api.create_certificate_signing_request(body).metadata.name
    assert mesh.outcome(name)[:2] == ("Denied", "NoSuchPodOnNode")


def _encoded(identity: str) -> str:
    return base64.b64encode(new_request(identity).csr_pem).decode()


def test_externally_approved_request_is_still_checked(mesh: ControlPlane) -> None:
    with mesh.frozen():
        name = mesh.submit(mesh.agent("node1"), _csr(AWAY))
        mesh.server.kubectl("certificate", "approve", name)
    assert mesh.outcome(name)[:2] == ("Failed", "NoSuchPodOnNode")
    assert not mesh.certificates.read_certificate_signing_request(name).status.certificate


def test_requests_of_other_signers_are_ignored(mesh: ControlPlane) -> None:
    foreign = mesh.submit(None, _csr(WEB), signer_name="example.com/other")
    ours = mesh.submit(mesh.agent("node1"), _csr(WEB))  # created later
    assert mesh.outcome(ours)[0] == "Approved"
    status = mesh.certificates.read_certificate_signing_request(foreign).status
    assert not (status and (status.conditions or status.certificate))


@pytest.fixture
def without_gateway_certificates(mesh: ControlPlane) -> Iterator[None]:
    """As with --no-gateway-certificates: the right to read Secrets of all namespaces is gone."""
    mesh.server.kubectl("delete", "clusterrolebinding", "ztunnel-controller-certificates")
    try:
        yield
    finally:
        mesh.server.apply(*manifests("controller-certificates.yaml"))


@pytest.mark.usefixtures("without_gateway_certificates")
def test_controller_has_no_other_permissions(mesh: ControlPlane) -> None:
    kubeconfig = mesh.server.account_kubeconfig(NAMESPACE, "ztunnel-controller")

    def may(*words: str) -> bool:
        done = mesh.server.try_kubectl("auth", "can-i", *words, kubeconfig=kubeconfig)
        return done.stdout.strip() == "yes"

    assert may("get", "secret/cacerts", "-n", NAMESPACE)
    for words in (
        ("get", "secret/other", "-n", NAMESPACE),
        ("list", "secrets", "-n", NAMESPACE),
        ("get", "secret/cacerts", "-n", "shop"),
        ("update", "configmap/other", "-n", "shop"),
        ("delete", "pods", "-n", "shop"),
        ("create", "pods", "-n", "shop"),
        ("create", "pods", "--subresource=exec", "-n", "shop"),
        ("create", "serviceaccounts", "--subresource=token", "-n", "shop"),
        ("list", "configmaps", "-n", "shop"),
        ("patch", "tcproutes.gateway.networking.k8s.io", "-n", "shop"),
        ("create", "gateways.gateway.networking.k8s.io", "-n", "shop"),
        ("delete", "gatewayclasses.gateway.networking.k8s.io"),
        ("create", "certificatesigningrequests"),
        ("update", "secret/cacerts", "-n", NAMESPACE),
    ):
        assert not may(*words), words


def test_agent_can_request_but_not_approve_or_list(mesh: ControlPlane) -> None:
    kubeconfig = mesh.agent("node1")

    def may(*words: str) -> bool:
        done = mesh.server.try_kubectl("auth", "can-i", *words, kubeconfig=kubeconfig)
        return done.stdout.strip() == "yes"

    assert may("create", "certificatesigningrequests")
    assert may("watch", f"configmap/{ROOTS_CONFIGMAP}", "-n", NAMESPACE)
    for words in (
        ("list", "certificatesigningrequests"),
        ("update", "certificatesigningrequests", "--subresource=approval"),
        ("update", "certificatesigningrequests", "--subresource=status"),
        ("get", "secrets", "-n", NAMESPACE),
        ("update", f"configmap/{ROOTS_CONFIGMAP}", "-n", NAMESPACE),
    ):
        assert not may(*words), words


def test_missing_permission_to_request_is_reported(mesh: ControlPlane) -> None:
    kubeconfig = mesh.server.kubeconfig("alice", ["no-permissions"])
    with pytest.raises(SigningError, match=r"403.*cannot create resource"):
        mesh.request(kubeconfig, WEB)


def test_roots_are_published_in_existing_and_new_namespaces(mesh: ControlPlane) -> None:
    bundle = wait_until(mesh.roots)
    for namespace in ("default", "shop", "kube-system"):
        assert wait_until(partial(mesh.roots, namespace)) == bundle
    mesh.namespace("latecomer")
    assert wait_until(lambda: mesh.roots("latecomer")) == bundle


def test_deleted_roots_are_restored(mesh: ControlPlane) -> None:
    bundle = wait_until(mesh.roots)
    for namespace in ("default", NAMESPACE):
        wait_until(partial(mesh.roots, namespace))
        mesh.core.delete_namespaced_config_map(ROOTS_CONFIGMAP, namespace)
        assert wait_until(partial(mesh.roots, namespace)) == bundle


def test_altered_roots_in_own_namespace_are_restored(mesh: ControlPlane) -> None:
    bundle = wait_until(mesh.roots)
    patch = {"data": {"root-cert.pem": "forged"}}
    mesh.core.patch_namespaced_config_map(ROOTS_CONFIGMAP, NAMESPACE, patch)
    wait_until(lambda: mesh.roots() == bundle, "the mesh's own roots are mended")


def test_roots_of_another_controller_are_kept_and_logged(mesh: ControlPlane) -> None:
    mesh.namespace("theirs")
    wait_until(lambda: mesh.roots("theirs"))
    mesh.core.patch_namespaced_config_map(
        ROOTS_CONFIGMAP, "theirs", {"data": {"root-cert.pem": "istiod's"}}, field_manager="istiod"
    )
    wait_until(lambda: "another controller owns the ConfigMap" in mesh.log("tested"))
    assert mesh.roots("theirs") == b"istiod's"


def test_log_has_decisions_but_no_secrets(mesh: ControlPlane) -> None:
    mesh.request(mesh.agent("node1"), WEB)
    lines = [json.loads(line) for line in mesh.log("tested").splitlines()]
    signed = [line for line in lines if line["event"] == "certificate signed"]
    assert {"identity", "serial", "proof", "request"} <= signed[-1].keys()
    assert "PRIVATE" not in mesh.log("tested")
    secret = mesh.core.read_namespaced_secret("ztunnel-ca", NAMESPACE)
    key = base64.b64decode((secret.data or {})["ca-key.pem"]).decode()
    assert key.splitlines()[1] not in mesh.log("tested")
