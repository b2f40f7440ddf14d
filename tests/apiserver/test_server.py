# SPDX-License-Identifier: Apache-2.0
"""The test API server enforces RBAC, binds tokens and serves the CSR API."""

from __future__ import annotations

import base64
import json

from tests.support.apiserver.server import ApiServer


def account(name: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": "default"},
    }


def test_serves_current_kubernetes(server: ApiServer) -> None:
    version = json.loads(server.kubectl("version", "-o", "json"))["serverVersion"]
    assert (version["major"], int(version["minor"].rstrip("+")) >= 30) == ("1", True)


def test_rbac_forbids_what_is_not_granted(server: ApiServer) -> None:
    kubeconfig = server.kubeconfig("alice", ["no-permissions"])
    done = server.try_kubectl("get", "pods", "-A", kubeconfig=kubeconfig)
    assert done.returncode != 0
    assert "forbidden" in done.stderr.lower()


def test_service_account_token_names_its_account(server: ApiServer) -> None:
    server.apply(account("speaker"))
    output = server.kubectl(
        "auth", "whoami", "-o", "json", kubeconfig=server.account_kubeconfig("default", "speaker")
    )
    user = json.loads(output)["status"]["userInfo"]["username"]
    assert user == "system:serviceaccount:default:speaker"


def test_token_can_be_bound_to_a_pod_on_a_node(server: ApiServer) -> None:
    server.apply(
        account("bound"),
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "bound", "namespace": "default"},
            "spec": {
                "nodeName": "n1",
                "serviceAccountName": "bound",
                "containers": [{"name": "app", "image": "x"}],
            },
        },
    )
    token = server.token("default", "bound", pod="bound")
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["kubernetes.io"]["node"]["name"] == "n1"


def test_certificate_requests_are_served(server: ApiServer) -> None:
    assert "certificatesigningrequests" in server.kubectl(
        "api-resources", "--api-group=certificates.k8s.io", "-o", "name"
    )
