# SPDX-License-Identifier: Apache-2.0
"""Pods with Envoy as a sidecar beside ambient and plain pods, with a real API server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.helpers.harness import (
    APPS,
    addresses,
    client,
    enrolled,
    named,
    proxy_log,
    python_pod,
)
from tests.lab.kubernetes import sidecar
from tests.lab.kubernetes.api_lab import ApiLab
from tests.lab.kubernetes.shop import (
    replace_pod,
    requesting,
    set_mode,
    shop_pod,
    shop_world,
    until_captured,
    workload,
)
from tests.support.apiserver.server import ApiServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kubernetes

Object = dict[str, Any]


@pytest.fixture(scope="module")
def api(_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    """`caller` in `mesh` (ambient) and `plain` on node1; `mesh/echo` and `shop/shop-1` with its
    service on node2."""
    with (
        ApiServer(tmp_path_factory.mktemp("cluster")) as server,
        ApiLab(f"e{os.getpid() % 100000}", server) as made,
    ):
        problems = made.lab.apply(
            *shop_world(),
            named("ServiceAccount", "sidecar", "shop"),
            python_pod("echo", "node2", namespace="mesh", script="server.py"),
        )
        assert problems == []
        until_captured(made, "mesh/caller", "node1")
        until_captured(made, "mesh/echo", "node2")
        wait_until(lambda: workload(made, "shop/shop-1"), "the API has the pods")
        yield made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sidecars")


def with_sidecar(api: ApiLab, files: Path, name: str, **options: bool) -> Object:
    toward = addresses(api.lab, "echo", "mesh")[4], "spiffe://cluster.local/ns/mesh/sa/default"
    return sidecar.pod(name, "node2", files, api.lab.names.ca, toward=toward, **options)


@pytest.fixture(scope="module")
def strict(api: ApiLab, files: Path) -> Iterator[str]:
    """The address of a pod whose sidecar rejects plaintext; no service selects it."""
    made = with_sidecar(api, files, "strict", strict=True)
    made["metadata"]["labels"]["app"] = "strict"
    assert api.lab.apply(made) == []
    wait_until(lambda: workload(api, "shop/strict").get("protocol") == "HBONE", "node1 knows")
    yield addresses(api.lab, "strict", "shop")[4]
    assert api.lab.delete("pod", "strict", "shop") == []


def test_ambient_reaches_a_sidecar_by_hbone(api: ApiLab, strict: str) -> None:
    """Envoy and the proxy verify the certificates of each other; Envoy accepts nothing else."""
    said = client(api.lab, "caller", "talk", strict, sidecar.PORT, "hello", namespace="mesh")
    assert said == {"said": "hello"}
    assert strict not in enrolled(api.lab, "node2")
    lines = [line for line in proxy_log(api.lab, "node1").splitlines() if strict in line]
    assert any(sidecar.identity("sidecar") in line for line in lines), lines


def test_plaintext_does_not_reach_a_strict_sidecar(api: ApiLab, strict: str) -> None:
    argv = [sys.executable, str(APPS / "client.py"), "talk", strict, str(sidecar.PORT), "hello"]
    done = api.lab.exec("caller", *argv, namespace="plain", timeout=60)
    assert done.returncode != 0 or json.loads(done.stdout) == {"said": ""}, done.stdout


def test_sidecar_reaches_ambient_by_hbone(api: ApiLab, strict: str) -> None:
    said = client(
        api.lab, "strict", "talk", "127.0.0.1", sidecar.OUT, "from afar", namespace="shop"
    )
    assert said == {"said": "from afar"}

    def is_logged() -> bool:
        lines = proxy_log(api.lab, "node2").splitlines()
        return any(sidecar.identity("sidecar") in line and "connection" in line for line in lines)

    wait_until(is_logged, "the proxy of node2 logs the source")


def test_sidecar_without_hbone_accepts_plaintext_from_all_pods(api: ApiLab, files: Path) -> None:
    """PERMISSIVE and without the label for HBONE, like the sidecars of Istio."""
    made = with_sidecar(api, files, "mild")
    made["metadata"]["labels"]["app"] = "mild"
    assert api.lab.apply(made) == []
    wait_until(lambda: workload(api, "shop/mild"), "node1 knows")
    assert workload(api, "shop/mild")["protocol"] == "NONE"
    address = addresses(api.lab, "mild", "shop")[4]
    for space in ("mesh", "plain"):
        text = f"hello from {space}"  # Envoy waits for five bytes to detect TLS
        said = client(api.lab, "caller", "talk", address, sidecar.PORT, text, namespace=space)
        assert said == {"said": text}
    assert api.lab.delete("pod", "mild", "shop") == []


def test_service_moves_to_sidecars_and_back_without_a_failed_request(
    api: ApiLab, files: Path
) -> None:
    with requesting(api, "mesh", "plain") as loops:

        def all_more() -> None:
            for loop in loops:
                loop.more()

        set_mode(api, "shop", "ambient")
        until_captured(api, "shop/shop-1", "node2")
        all_more()
        replace_pod(api, "shop-1", with_sidecar(api, files, "shop-2"))
        assert "sidecar" in workload(api, "shop/shop-2", "node2")["capture_refused"]
        assert addresses(api.lab, "shop-2", "shop")[4] not in enrolled(api.lab, "node2")
        all_more()
        replace_pod(api, "shop-2", shop_pod("shop-3"))
        until_captured(api, "shop/shop-3", "node2")
        all_more()
        set_mode(api, "shop", "")
        all_more()
