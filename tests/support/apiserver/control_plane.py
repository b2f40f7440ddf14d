# SPDX-License-Identifier: Apache-2.0
"""The mesh's control plane on a real API server: RBAC of deploy/, controllers, agents' tokens.

    mesh = Mesh(server)                  # applies the accounts and roles of deploy/ only
    mesh.pod("shop", "web-1", account="web", node="node1")
    with mesh.controller("one"):
        mesh.request(mesh.agent("node1"), "spiffe://cluster.local/ns/shop/sa/web")

There is no kubelet: tests set the node and phase of pods.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import client

from tests.support import waiting
from tests.support.apiserver.server import ROOT, ApiServer
from ztunnel.identity.csr import new_request
from ztunnel.identity.csr_signer import IssuedCertificate
from ztunnel.kube.constants import NAMESPACE, ROOTS_CONFIGMAP, ROOTS_KEY, SIGNER_NAME, USAGES
from ztunnel.kube.writers.csr_client import CsrSigner

DEPLOY = ROOT / "deploy"
GRANTS = (
    "namespace.yaml",
    "agent-rbac.yaml",
    "controller-rbac.yaml",
    "controller-certificates.yaml",
)
WAIT_S = 30.0
T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | waiting.Falsy], what: waiting.What = "", timeout_s: float = WAIT_S
) -> T:
    """`waiting.wait_until` with the patience that controllers need."""
    return waiting.wait_until(condition, what, timeout_s)


def manifests(*names: str) -> list[dict[str, Any]]:
    """The objects of files of deploy/."""
    return [obj for name in names for obj in yaml.safe_load_all((DEPLOY / name).read_text("utf-8"))]


def requests_api(api: Any) -> Any:
    """certificates.k8s.io, with answers of any type: a test finds out what is None."""
    return client.CertificatesV1Api(api)


class ControlPlane:
    """The namespace, accounts and roles of the mesh on a server."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        server.apply(*manifests(*GRANTS))
        self.api = server.client()
        self.core: Any = client.CoreV1Api(self.api)
        self.certificates = requests_api(self.api)
        self._controller_kubeconfig = server.account_kubeconfig(NAMESPACE, "ztunnel-controller")
        self._agents: dict[str, Path] = {}
        self._running: list[subprocess.Popen[bytes]] = []

    def namespace(self, name: str) -> None:
        self.server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def account(self, namespace: str, name: str) -> None:
        metadata = {"namespace": namespace, "name": name}
        self.server.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})

    def pod(
        self,
        namespace: str,
        name: str,
        *,
        account: str = "default",
        node: str = "",
        phase: str = "Running",
        host_network: bool = False,
    ) -> None:
        """A pod as the API server has it."""
        self.namespace(namespace)
        self.account(namespace, account)
        spec: dict[str, Any] = {
            "serviceAccountName": account,
            "containers": [{"name": "app", "image": "app"}],
        }
        if node:
            spec["nodeName"] = node
        if host_network:
            spec["hostNetwork"] = True
        self.server.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"namespace": namespace, "name": name},
                "spec": spec,
                "status": {"phase": phase},
            }
        )

    def agent(self, node: str) -> Path:
        """The kubeconfig of a node's agent: with a token bound to its pod."""
        if node not in self._agents:
            name = f"ztunnel-{node}"
            node_object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}
            self.server.apply(node_object)
            self.pod(NAMESPACE, name, account="ztunnel-agent", node=node)
            self._agents[node] = self.server.account_kubeconfig(
                NAMESPACE, "ztunnel-agent", pod=name
            )
        return self._agents[node]

    @contextlib.contextmanager
    def controller(self, identity: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A controller process with the permissions of deploy/; terminated at the end."""
        argv = [sys.executable, "-m", "ztunnel.main", "controller", "--health-port=0"]
        argv += ["--kubeconfig", str(self._controller_kubeconfig), "--identity", identity]
        argv += ["--log-format=json", "--lease-duration=3", "--root-propagation-delay=1", *options]
        log = self.server.directory / f"controller-{identity}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(argv, stderr=out, cwd=ROOT)
        self._running.append(process)
        try:
            yield process
        finally:
            self._running.remove(process)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all controllers with SIGSTOP meanwhile."""
        for process in self._running:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self._running:
                process.send_signal(signal.SIGCONT)

    def log(self, identity: str) -> str:
        return (self.server.directory / f"controller-{identity}.log").read_text("utf-8")

    def roots(self, namespace: str = NAMESPACE) -> bytes:
        """The published roots, empty before there are any."""
        try:
            found = self.core.read_namespaced_config_map(ROOTS_CONFIGMAP, namespace)
        except client.ApiException:
            return b""
        return str((found.data or {}).get(ROOTS_KEY, "")).encode()

    def request(
        self, kubeconfig: Path, identity: str, timeout: float = WAIT_S
    ) -> IssuedCertificate:
        """Request a certificate as an agent does. Raises CsrRejected, SigningError."""
        api = self.server.client(kubeconfig)
        wait_until(self.roots, "roots are published")
        signer = CsrSigner(api, self.roots, timedelta(hours=1))
        csr = new_request(identity).csr_pem
        return asyncio.run(asyncio.wait_for(signer.sign(identity, csr), timeout))

    def submit(
        self,
        kubeconfig: Path | None,
        csr_pem: bytes,
        *,
        usages: Sequence[str] = USAGES,
        signer_name: str = SIGNER_NAME,
    ) -> str:
        """Create an arbitrary request; returns its name."""
        api = requests_api(self.server.client(kubeconfig))
        made = api.create_certificate_signing_request(
            client.V1CertificateSigningRequest(
                metadata=client.V1ObjectMeta(generate_name="test-"),
                spec=client.V1CertificateSigningRequestSpec(
                    request=base64.b64encode(csr_pem).decode(),
                    signer_name=signer_name,
                    usages=list(usages),
                ),
            )
        )
        return str(made.metadata.name)

    def outcome(self, name: str) -> tuple[str, str, str]:
        """Wait for the final condition of a request: type, reason, message."""

        def ended() -> tuple[str, str, str] | None:
            status = self.certificates.read_certificate_signing_request(name).status
            found = {each.type: each for each in (status.conditions if status else None) or []}
            for kind in ("Denied", "Failed"):
                if kind in found:
                    return kind, found[kind].reason, found[kind].message
            if "Approved" in found and status.certificate:
                return "Approved", found["Approved"].reason, found["Approved"].message
            return None

        result: tuple[str, str, str] = wait_until(ended, f"the end of request {name}")
        return result

    def leader(self) -> str:
        """The holder of the lease; empty if there is none."""
        try:
            leases: Any = client.CoordinationV1Api(self.api)
            lease: Any = leases.read_namespaced_lease("ztunnel-controller", NAMESPACE)
        except client.ApiException:
            return ""
        return str(lease.spec.holder_identity or "")
