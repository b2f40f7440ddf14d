# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint` without a cluster: manifests and rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.unit.cli.conftest import Ztctl
from ztctl.commands.l7.waypoint.gateway import (
    gateway_manifest,
    is_programmed,
    namespace_labels,
    status_rows,
)
from ztctl.errors import CommandError

USE, WHERE = "istio.io/use-waypoint", "istio.io/use-waypoint-namespace"


def test_generated_manifest_is_the_gateway_of_istioctl(ztctl: Ztctl) -> None:
    result = ztctl("waypoint", "generate", "-n", "shop", "--for", "service")
    assert yaml.safe_load(result.output) == {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": "waypoint",
            "namespace": "shop",
            "labels": {"istio.io/waypoint-for": "service"},
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    as_json = ztctl("waypoint", "generate", "-o", "json")
    assert "labels" not in json.loads(as_json.output)["metadata"]


@pytest.mark.parametrize(
    ("labels", "overwrite", "expected"),
    [
        ({}, False, {USE: "way"}),
        ({USE: "way"}, False, {USE: "way"}),
        ({USE: "other"}, False, None),
        ({USE: "other"}, True, {USE: "way"}),
        ({USE: "way", WHERE: "elsewhere"}, False, None),
        ({USE: "way", WHERE: "elsewhere"}, True, {USE: "way", WHERE: "shop"}),
    ],
)
def test_namespace_keeps_its_waypoint_unless_overwritten(
    labels: dict[str, str], overwrite: bool, expected: dict[str, str] | None
) -> None:
    namespace = {"metadata": {"name": "shop", "labels": labels}}
    if expected is None:
        with pytest.raises(CommandError, match="--overwrite"):
            namespace_labels(namespace, "way", overwrite=overwrite)
    else:
        assert namespace_labels(namespace, "way", overwrite=overwrite) == expected


def test_condition_of_an_earlier_generation_does_not_count() -> None:
    gateway: dict[str, Any] = gateway_manifest("way", "shop", None, "istio-waypoint")
    assert [row["reason"] for row in status_rows([gateway])] == ["NotReconciled"]
    gateway["metadata"]["generation"] = 2
    condition = {"type": "Programmed", "status": "True", "observedGeneration": 1}
    gateway["status"] = {"conditions": [condition]}
    assert not is_programmed(gateway)
    condition["observedGeneration"] = 2
    assert is_programmed(gateway)


def test_waypoint_of_a_foreign_class_is_reported() -> None:
    gateway = gateway_manifest("way", "shop", None, "istio-waypoint")
    rows = list(status_rows([gateway], lambda name: "istio.io/mesh-controller"))
    assert rows[0]["reason"] == "ForeignController"
    assert "istio.io/mesh-controller" in rows[0]["message"]
