# SPDX-License-Identifier: Apache-2.0
"""Authentication and authorization of port-forward access, with the permissions of deploy/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.support.apiserver.objects import account, pod
from tests.support.apiserver.rbac_fixture import AGENT, SYSTEM, agent_kubeconfig, grant, manifest
from tests.support.apiserver.server import ApiServer
from tests.support.waiting import wait_until
from ztctl.transport.base import Agent, TransportError
from ztctl.transport.port_forward import PortForward, _request_token
from ztunnel.kube.admin_endpoint import ACCOUNT, ANNOTATION, AdminEndpoint
from ztunnel.kube.client.access import Access
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.kube.writers.token_review import TokenReviewer

HERE, THERE = AdminEndpoint(15, "a" * 64), AdminEndpoint(15, "b" * 64)  # two agents


@pytest.fixture(scope="module")
def agent(server: ApiServer) -> Path:
    """The kubeconfig of the agent on n1; it may also create TokenReviews."""
    grant(server, "n1", "n2")
    server.apply(*manifest("admin.yaml"), account("other", SYSTEM))
    return agent_kubeconfig(server, "n1")


@pytest.fixture(scope="module")
def person(server: ApiServer, agent: Path) -> Path:
    """The kubeconfig of a user with the Role ztunnel-admin only."""
    subject = {"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}
    role = {"kind": "Role", "name": ACCOUNT, "apiGroup": "rbac.authorization.k8s.io"}
    server.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "eve", "namespace": SYSTEM},
            "subjects": [subject],
            "roleRef": role,
        }
    )
    return server.kubeconfig("eve")


@pytest.fixture
def reviews(server: ApiServer, agent: Path) -> Iterator[TokenReviewer]:
    api = server.client(agent)
    yield TokenReviewer(api, SYSTEM)
    api.close()


def _made(server: ApiServer, name: str, *audiences: str) -> str:
    """A token of any account and for any audiences, created by cluster-admin."""
    spec = {"audiences": audiences, "expirationSeconds": 600}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{name}/token"
    answer = server.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    return str(json.loads(answer)["status"]["token"])


def test_user_token_is_accepted_by_one_agent_only(
    server: ApiServer, person: Path, reviews: TokenReviewer
) -> None:
    token = _request_token(client.CoreV1Api(server.client(person)), HERE)
    assert reviews.refusal(token, HERE.audience) == ""
    assert "for another agent" in reviews.refusal(token, THERE.audience)


OTHER_TOKENS: dict[str, tuple[str, Callable[[ApiServer], str]]] = {
    "no token": ("rejected the token", lambda _: "nothing"),
    "another account's": ("want ", lambda server: _made(server, "other", HERE.audience)),
    "the agents' own": ("want ", lambda server: _made(server, AGENT, HERE.audience)),
    "for the API server": ("rejected the token", lambda server: server.token(SYSTEM, ACCOUNT)),
    "forged": (
        "rejected the token",
        lambda server: _made(server, ACCOUNT, HERE.audience)[:-8] + "A" * 8,
    ),
}


@pytest.mark.parametrize("case", OTHER_TOKENS)
def test_other_tokens_are_rejected(server: ApiServer, reviews: TokenReviewer, case: str) -> None:
    text, make = OTHER_TOKENS[case]
    assert text in reviews.refusal(make(server), HERE.audience)


def test_token_of_deleted_account_is_rejected(server: ApiServer, reviews: TokenReviewer) -> None:
    token = _made(server, ACCOUNT, HERE.audience)
    server.kubectl("-n", SYSTEM, "delete", "serviceaccount", ACCOUNT)
    try:
        wait_until(lambda: reviews.refusal(token, HERE.audience), "the token is void", timeout_s=20)
    finally:
        server.apply(*manifest("admin.yaml"))


def test_tokens_are_rejected_without_review_permission(server: ApiServer, person: Path) -> None:
    reviews = TokenReviewer(server.client(person), SYSTEM)
    assert "403" in reviews.refusal(_made(server, ACCOUNT, HERE.audience), HERE.audience)


def test_tokens_are_rejected_while_server_is_unreachable(fresh_server: ApiServer) -> None:
    reviews = TokenReviewer(fresh_server.client(), SYSTEM)
    fresh_server.stop_api()
    assert "cannot review tokens" in reviews.refusal("token", HERE.audience)


def test_admin_role_allows_port_forward_only(server: ApiServer, person: Path) -> None:
    def may(*words: str) -> bool:
        done = server.try_kubectl("auth", "can-i", *words, kubeconfig=person)
        return done.stdout.strip() == "yes"

    forward = ("pods", "--subresource=portforward", "-n", SYSTEM)
    token = f"serviceaccounts/{ACCOUNT}"
    assert may("list", "pods", "-n", SYSTEM)
    assert may("get", *forward)
    assert may("create", token, "--subresource=token", "-n", SYSTEM)
    for words in (
        ("create", "pods", "--subresource=exec", "-n", SYSTEM),
        ("create", f"serviceaccounts/{AGENT}", "--subresource=token", "-n", SYSTEM),
        ("get", "secrets", "-n", SYSTEM),
        ("patch", "pods", "-n", SYSTEM),
        ("list", "pods", "-n", "default"),
    ):
        assert not may(*words), words


def test_admin_account_has_no_permissions(server: ApiServer, agent: Path) -> None:
    login = server.account_kubeconfig(SYSTEM, ACCOUNT)
    for words in (("list", "pods"), ("get", "secrets"), ("create", "pods")):
        done = server.try_kubectl("auth", "can-i", *words, "-n", SYSTEM, kubeconfig=login)
        assert done.stdout.strip() == "no", words


@pytest.mark.parametrize("who", ["admin", "other"])
def test_port_forward_is_authorized_by_api_server(
    server: ApiServer, person: Path, who: str
) -> None:
    """There is no kubelet: an authorized request fails later, at the node."""
    login = person if who == "admin" else server.kubeconfig("mallory")
    asked = Agent(Access(login), "n1", "agent-n1", HERE)
    with pytest.raises(TransportError) as failure:
        PortForward(asked)
    text = str(failure.value)
    if who == "other":
        assert "create serviceaccounts/token of ztunnel-admin: the API server responded 403" in text
    else:
        assert "403" not in text, text
        assert "pods/portforward" in text


def test_agent_publishes_admin_endpoint_on_own_pod_only(server: ApiServer, agent: Path) -> None:
    neighbour = pod("neighbour", SYSTEM, "10.66.0.1", on="n1")
    server.apply(account("neighbour", SYSTEM), neighbour)
    writer = PodWriter(Access(agent).client(), "n1")
    try:
        wait_until(
            lambda: _annotate(writer, "neighbour") != "",
            "the admission policy is in force",
            timeout_s=30,
        )
        for name in ("neighbour", "agent-n2"):
            assert "own" in _annotate(writer, name)
        assert _annotate(writer, "agent-n1") == ""
        found = json.loads(server.kubectl("-n", SYSTEM, "get", "pod", "agent-n1", "-o", "json"))
        assert found["metadata"]["annotations"][ANNOTATION] == str(HERE)
    finally:
        writer.close()


def _annotate(writer: PodWriter, name: str) -> str:
    """The API server's error; empty on success."""
    try:
        assert writer.annotate(SYSTEM, name, ANNOTATION, str(HERE))
    except ApiError as error:
        return str(error)
    return ""
