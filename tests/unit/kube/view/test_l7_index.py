# SPDX-License-Identifier: Apache-2.0
"""The view's objects that configure L7: as JSON text, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ztunnel.ipc.gateway_messages import MAX_L7_BODY_BYTES
from ztunnel.kube.client.object_decoder import PartialDecoder
from ztunnel.kube.objects.fields import KINDS
from ztunnel.kube.objects.l7_kinds import L7_KINDS
from ztunnel.kube.sources.api_server import watched_resources
from ztunnel.kube.view import l7_index
from ztunnel.kube.view.cluster_view import ClusterView

Json = dict[str, Any]


def route(name: str = "web", **spec: Any) -> Json:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web"},
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"parentRefs": [{"kind": "Service", "name": "web"}], **spec},
        "status": {"parents": []},
    }


@pytest.fixture
def view() -> ClusterView:
    return ClusterView("cluster.local", "Kubernetes")


def body(view: ClusterView) -> Json:
    (found,) = view.snapshot().l7
    decoded: Json = json.loads(found.body)
    return decoded


def test_body_has_neither_managed_fields_nor_status(view: ClusterView) -> None:
    view.upsert(route())
    assert body(view) == {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "namespace": "shop",
            "name": "web",
            "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web"},
        },
        "spec": {"parentRefs": [{"kind": "Service", "name": "web"}]},
    }


def test_change_and_removal_are_published_once(view: ClusterView) -> None:
    view.upsert(route())
    assert [each.key for each in view.drain().l7] == ["HTTPRoute shop/web"]
    view.upsert(route() | {"status": {"parents": ["changed"]}})
    assert not view.drain(), "status is no part of the body"
    view.delete("HTTPRoute", "shop", "web")
    change = view.drain()
    assert (change.l7, change.removed_l7) == ((), ("HTTPRoute shop/web",))


def test_l7_objects_do_not_change_the_revision_of_the_mesh(view: ClusterView) -> None:
    view.upsert(route())
    assert view.drain().revision == 0


def test_policy_is_in_the_mesh_and_among_the_l7_objects(view: ClusterView) -> None:
    view.upsert(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "deny", "namespace": "shop"},
            "spec": {},
        }
    )
    change = view.drain()
    assert [each.name for each in change.l7] == ["deny"]
    assert len(change.policies) == 1


def test_istios_own_gateway_kind_is_another_kind(view: ClusterView) -> None:
    view.upsert(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "ingress", "namespace": "shop"},
            "spec": {"servers": []},
        }
    )
    assert view.snapshot().l7 == ()


def test_oversized_object_keeps_its_targets_and_becomes_invalid(view: ClusterView) -> None:
    view.upsert(route(rules=[{"name": "x" * MAX_L7_BODY_BYTES}]))
    spec = body(view)["spec"]
    assert spec["parentRefs"] == [{"kind": "Service", "name": "web"}]
    assert "object ignored" in spec["rules"]
    assert "limit" in view.errors()["HTTPRoute shop/web"]
    view.upsert(route(rules=[]))
    assert body(view)["spec"]["rules"] == []
    assert view.errors() == {}


def test_namespace_beyond_its_bound_does_not_affect_others(
    view: ClusterView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(l7_index, "MAX_NAMESPACE_BYTES", 9000)
    for number in range(4):
        view.upsert(route(f"r{number}", rules=[{"name": "x" * 4000}]))
    other = route(rules=[{"name": "x" * 4000}])
    other["metadata"]["namespace"] = "other"
    view.upsert(other)
    whole = {
        f"{each.namespace}/{each.name}"
        for each in view.snapshot().l7
        if isinstance(json.loads(each.body)["spec"]["rules"], list)
    }
    assert whole == {"shop/r0", "shop/r1", "other/web"}
    view.delete("HTTPRoute", "shop", "r0")
    view.upsert(route("r2", rules=[{"name": "x" * 4000}]))
    assert "HTTPRoute shop/r2" not in view.errors()


def test_undecodable_member_becomes_text_that_parsers_reject(view: ClusterView) -> None:
    deep = "[" * 2000 + "]" * 2000
    line = (
        '{"type": "ADDED", "object": {"kind": "HTTPRoute", '
        '"apiVersion": "gateway.networking.k8s.io/v1", '
        '"metadata": {"name": "web", "namespace": "shop"}, '
        f'"spec": {{"parentRefs": [{{"name": "web"}}], "rules": {deep}}}}}}}'
    )
    view.upsert(PartialDecoder("HTTPRoute").event(line.encode()).object)
    spec = body(view)["spec"]
    assert spec["parentRefs"] == [{"name": "web"}]
    assert "not decodable" in spec["rules"]


def test_every_kind_is_known_and_watched() -> None:
    watched = {resource.kind: resource for resource in watched_resources("n")}
    for kind, info in L7_KINDS.items():
        assert KINDS[kind] == info.api_version
        assert watched[kind].path == f"/apis/{info.api_version}/{info.plural}"
        assert watched[kind].optional
