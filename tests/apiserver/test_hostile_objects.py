# SPDX-License-Identifier: Apache-2.0
"""Objects at the extremes that an API server accepts: each concerns its own workloads at most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.apiserver.objects import ambient, namespace, pod
from tests.support.apiserver.server import ApiServer
from tests.support.apiserver.source_runner import SourceRunner
from tests.support.waiting import wait_until
from ztunnel.agent.workers import delta_chunks
from ztunnel.ipc.channel import MAX_MESSAGE_BYTES
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.match_terms import AuthzRequest

CRDS = Path(__file__).parents[2] / "deploy" / "crds"
BASE = "/apis/security.istio.io/v1/namespaces/{namespace}/authorizationpolicies"
POLICY = """{{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy",
"metadata":{{"name":"{name}","namespace":"{namespace}"}},"spec":{spec}}}"""
DEEP = "[" * 1200 + "]" * 1200
LABELS = {f"label-{number}": "x" * 50 for number in range(15_000)}  # 1.1 MB
LONG = {f"{number}.istio.io/x": "\u2028" * 4000 for number in range(20)}  # 240 kB

HOSTILE_SPECS = {
    "deep-unknown-field": f'{{"action":"ALLOW","rules":[{{}}],"x":{DEEP}}}',
    "deep-objects": '{"x":' + '{"a":' * 1200 + "0" + "}" * 1200 + "}",
    "deep-rules": f'{{"rules":[{{"x":{DEEP}}}]}}',
    "nearly-deep": '{"x":' + "[" * 900 + "]" * 900 + "}",
    "numbers": '{"x":1e300,"y":99999999999999999999,"z":-1e-300}',
    "unicode": json.dumps({"\u2028\u0000": "\U0010ffff\u202e"}),
    "long-key": json.dumps({"k" * 500_000: 1}),
    "long-label": json.dumps({"selector": {"matchLabels": {"k" * 500_000: "v"}}}),
    "many-namespaces": json.dumps(
        {"rules": [{"from": [{"source": {"namespaces": [f"n{n}" for n in range(50_000)]}}]}]}
    ),
}


@pytest.fixture(scope="module")
def cluster(server: ApiServer) -> ApiServer:
    """With our CRDs, and pods in the namespaces of a hostile tenant and of a victim."""
    server.kubectl("apply", "--server-side", "-f", str(CRDS))
    crd = "crd/authorizationpolicies.security.istio.io"
    server.kubectl("wait", "--for=condition=Established", "--timeout=30s", crd)
    server.apply(
        *(ambient("hostile"), ambient("victim"), namespace("istio-system")),
        pod("a", "hostile", "10.9.1.1"),
        pod("a", "victim", "10.9.2.1"),
    )
    return server


@pytest.fixture
def clean(cluster: ApiServer) -> Iterator[ApiServer]:
    yield cluster
    for each in ("hostile", "victim"):
        cluster.kubectl("delete", "authorizationpolicies", "--all", "-n", each)


def create(server: ApiServer, name: str, spec: str, place: str = "hostile") -> None:
    """As text, which the server receives unchanged: a client may not be able to encode it."""
    body = POLICY.format(name=name, namespace=place, spec=spec)
    server.kubectl("create", "--raw", BASE.format(namespace=place), "-f", "-", stdin=body)


def is_allowed(source: SourceRunner, place: str, name: str = "a") -> bool:
    workload = source.workload(name, place)
    request = AuthzRequest(
        "10.9.9.9", "spiffe://cluster.local/ns/x/sa/y", SocketAddress(workload.addresses[0], 80)
    )
    return bool(source.state.policies.decide(workload, request).allowed)


def check_messages(source: SourceRunner) -> None:
    """Everything that the agent sends to workers fits into its messages."""
    now = source.mirror.snapshot()
    for part in delta_chunks.snapshot(now.revision, now.workloads, now.services, now.policies):
        assert len(msgspec.msgpack.encode(part)) < MAX_MESSAGE_BYTES


@pytest.mark.parametrize("name", HOSTILE_SPECS)
def test_hostile_policy_denies_its_namespace_and_later_policies_apply(
    clean: ApiServer, name: str
) -> None:
    with SourceRunner(clean.admin_kubeconfig) as watching:
        assert is_allowed(watching, "hostile")
        create(clean, name, HOSTILE_SPECS[name])
        wait_until(lambda: not is_allowed(watching, "hostile"), "the tenant's pods to be denied")
        assert is_allowed(watching, "victim")
        create(clean, "deny", '{"action":"DENY","rules":[{}]}', "victim")
        wait_until(lambda: not is_allowed(watching, "victim"), "the victim's policy")
        assert f"AuthorizationPolicy hostile/{name}" in watching.mirror.errors()
        assert not watching.errors()
        with SourceRunner(clean.admin_kubeconfig) as joining:
            assert not is_allowed(joining, "victim")
            assert not is_allowed(joining, "hostile")
            assert joining.mirror.errors() == watching.mirror.errors()
            check_messages(joining)
        clean.kubectl("delete", "authorizationpolicy", name, "-n", "hostile")
        wait_until(lambda: is_allowed(watching, "hostile"), "the rejected policy to be removed")


def test_pod_with_15000_labels_and_long_annotations_delays_no_other_pod(clean: ApiServer) -> None:
    with SourceRunner(clean.admin_kubeconfig) as watching:
        clean.apply(pod("large", "hostile", "10.9.1.2", labels=LABELS))
        clean.apply(pod("long", "hostile", "10.9.1.3", annotations=LONG))
        clean.apply(pod("late", "victim", "10.9.2.2"))
        wait_until(lambda: watching.workload("late", "victim"), "the later pod")
        assert watching.workload("long", "hostile")
        assert watching.workload("large", "hostile")
        assert not is_allowed(watching, "hostile", "large")
        assert is_allowed(watching, "hostile", "long")
        with SourceRunner(clean.admin_kubeconfig) as joining:
            assert joining.workload("late", "victim")
            assert not is_allowed(joining, "hostile", "large")
            check_messages(joining)
        clean.kubectl("delete", "pod", "large", "-n", "hostile", "--force", "--grace-period=0")
        clean.kubectl("delete", "pod", "long", "-n", "hostile", "--force", "--grace-period=0")
        wait_until(lambda: not watching.workload("large", "hostile"), "the pod to be removed")
