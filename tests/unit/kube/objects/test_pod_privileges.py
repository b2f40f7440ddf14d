# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from ztunnel.kube.client.object_decoder import PartialDecoder
from ztunnel.kube.objects.fields import Fields
from ztunnel.kube.objects.pod_privileges import bypassing_privileges


def container(name: str = "app", *added: str, privileged: bool = False) -> dict[str, Any]:
    context = {"privileged": privileged, "capabilities": {"add": [*added], "drop": ["ALL"]}}
    return {"name": name, "image": "x", "securityContext": context}


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({}, ""),
        ({"containers": [{"name": "app"}]}, ""),
        ({"containers": [container()]}, ""),
        ({"containers": [container("app", "NET_BIND_SERVICE")]}, ""),
        ({"containers": [container("app", "NET_ADMIN")]}, "container app has NET_ADMIN"),
        ({"containers": [container("app", "CAP_NET_RAW")]}, "container app has NET_RAW"),
        ({"containers": [container("app", "all")]}, "container app has ALL"),
        ({"initContainers": [container("init", "BPF")]}, "container init has BPF"),
        ({"containers": [container(privileged=True)]}, "container app has privileged"),
        ({"hostPID": True}, "the pod uses the host's PID namespace"),
        ({"containers": "none"}, "spec.containers is 'none', want a list"),
    ],
)
def test_privileges_that_bypass_the_capture_are_named(spec: dict[str, Any], found: str) -> None:
    assert bypassing_privileges(Fields(spec, "spec.")) == found


def test_decoder_passes_only_containers_that_add_privileges() -> None:
    body = b"""{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "a"},
        "spec": {"nodeName": "n", "containers": [
            {"name": "plain", "securityContext": {"runAsUser": 1}},
            {"name": "admin", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]}}]}"""
    (pod,) = PartialDecoder("Pod").page(body).items
    assert [each["name"] for each in pod["spec"]["containers"]] == ["admin"]
    assert bypassing_privileges(Fields(pod["spec"], "")) == "container admin has NET_ADMIN"
