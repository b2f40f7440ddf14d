# SPDX-License-Identifier: Apache-2.0
"""The controller reads what Envoys reject from annotations that agents write."""

from __future__ import annotations

from typing import Any

import pytest

from ztunnel.agent.gateways.rejections import annotation_value
from ztunnel.controller.l7.rejections import Rejections
from ztunnel.ipc.gateway_messages import RejectedResource
from ztunnel.l7.names import TypeUrl


class Pods:
    """One pod; its annotations in the watch have their first characters only."""

    def __init__(self, *resources: RejectedResource) -> None:
        self.value = annotation_value(resources)

    def _pod(self, value: str) -> dict[str, Any]:
        return {
            "metadata": {
                "namespace": "shop",
                "labels": {"gateway.networking.k8s.io/gateway-name": "waypoint"},
                "annotations": {"ztunnel.dev/rejected-config": value} if value else {},
            }
        }

    def of(self, ref: object) -> dict[str, Any]:
        return self._pod(self.value[:256])

    def get(self, ref: object) -> dict[str, Any]:
        return self._pod(self.value)


def rejections(*resources: RejectedResource) -> tuple[Rejections, Pods]:
    pods = Pods(*resources)
    found = Rejections(pods, pods)  # type: ignore[arg-type]
    assert found.reconcile("pod") is bool(resources)  # type: ignore[arg-type]
    return found, pods


@pytest.mark.parametrize(
    ("type_url", "name"),
    [
        (TypeUrl.ROUTE, "shop/web|80"),
        (TypeUrl.ROUTE, "shop/web|80#all"),
        (TypeUrl.CLUSTER, "shop/web|80|v2"),
        (TypeUrl.LISTENER, "waypoint#shop/web|80"),
    ],
)
def test_rejection_concerns_the_service_of_the_resource(type_url: TypeUrl, name: str) -> None:
    found, _ = rejections(RejectedResource(type_url, name, "no"))
    assert found.by_service() == {"shop/web": "no"}
    assert found.of_gateway("shop/waypoint") == ""


def test_rejected_listener_concerns_its_gateway_only() -> None:
    found, _ = rejections(RejectedResource(TypeUrl.LISTENER, "waypoint", "no"))
    assert found.by_service() == {}
    assert "the previous one stays: no" in found.of_gateway("shop/waypoint")
    assert found.of_gateway("shop/other") == ""


def test_removed_annotation_ends_the_rejection() -> None:
    found, pods = rejections(RejectedResource(TypeUrl.ROUTE, "shop/web|80", "no" * 300))
    pods.value = ""
    assert found.reconcile("pod")  # type: ignore[arg-type]
    assert found.by_service() == {}


def test_malformed_annotation_is_ignored() -> None:
    found, pods = rejections(RejectedResource(TypeUrl.ROUTE, "shop/web|80", "no"))
    pods.value = '{"hash": 1, "resources": "x"}'
    assert found.reconcile("pod")  # type: ignore[arg-type]
    assert found.by_service() == {}
