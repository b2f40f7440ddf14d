# SPDX-License-Identifier: Apache-2.0
"""Our CRDs are structural and have exactly the fields that the agent supports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.policies import ROOT, peer, policy
from ztunnel.kube.objects.fields import KINDS, TranslateError
from ztunnel.kube.objects.policies import read_authorization_policy, read_peer_authentication
from ztunnel.kube.objects.service_entries import read_entry

CRDS = Path(__file__).parents[4] / "deploy" / "crds"
Json = dict[str, Any]


def crd(kind: str) -> Json:
    found = [yaml.safe_load(path.read_text()) for path in CRDS.glob("*.yaml")]
    return next(each for each in found if each["spec"]["names"]["kind"] == kind)


def schema(kind: str) -> Json:
    version = next(each for each in crd(kind)["spec"]["versions"] if each["storage"])
    found: Json = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def nodes(node: Json) -> Iterator[Json]:
    yield node
    for each in node.get("properties", {}).values():
        yield from nodes(each)
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            yield from nodes(node[name])


@pytest.mark.parametrize("kind", ["AuthorizationPolicy", "PeerAuthentication", "ServiceEntry"])
def test_crd_versions_and_structural_schema(kind: str) -> None:
    made = crd(kind)
    group = made["spec"]["group"]
    stored = [v["name"] for v in made["spec"]["versions"] if v["storage"]]
    assert KINDS[kind] == f"{group}/{stored[0]}"
    assert made["metadata"]["name"] == f"{made['spec']['names']['plural']}.{group}"
    assert all("type" in node for node in nodes(schema(kind)))


@pytest.mark.parametrize("kind", ["AuthorizationPolicy", "PeerAuthentication", "ServiceEntry"])
def test_unknown_fields_are_preserved(kind: str) -> None:
    """Without this, the API server drops unknown fields and the agent cannot reject them."""
    for node in nodes(schema(kind)):
        known = set(node.get("properties", {}))
        if known & {
            "hosts",
            "address",
            "number",
            "rules",
            "mode",
            "mtls",
            "from",
            "source",
            "principals",
            "operation",
            "ports",
        }:
            assert node.get("x-kubernetes-preserve-unknown-fields"), known


def at(kind: str, *path: str) -> list[str]:
    node = schema(kind)
    for name in path:
        node = node["items"] if name == "[]" else node["properties"][name]
    return list(node["properties"])


FROM = ("rules", "[]", "from", "[]", "source")
TO = ("rules", "[]", "to", "[]", "operation")


def value_for(name: str) -> list[str]:
    if "Ports" in name or name == "ports":
        return ["80"]
    return ["10.0.0.0/8"] if "pBlocks" in name else ["a"]


@pytest.mark.parametrize("name", at("AuthorizationPolicy", *FROM))
def test_every_source_field_of_crd_is_accepted(name: str) -> None:
    rule = {"from": [{"source": {name: value_for(name)}}]}
    assert not read_authorization_policy(policy([rule]), ROOT).policy.refused


@pytest.mark.parametrize("name", at("AuthorizationPolicy", *TO))
def test_every_operation_field_of_crd_is_accepted(name: str) -> None:
    rule = {"to": [{"operation": {name: value_for(name)}}]}
    assert not read_authorization_policy(policy([rule]), ROOT).policy.refused


def test_known_fields_equal_crd_schema() -> None:
    """The known fields in the agent's error equal those of the schema."""
    for kind, path, rule in (
        ("from", FROM, {"from": [{"source": {"x": ["a"]}}]}),
        ("to", TO, {"to": [{"operation": {"x": ["a"]}}]}),
        ("rules", ("rules", "[]"), {"x": []}),
    ):
        refused = read_authorization_policy(policy([rule]), ROOT).policy.refused
        known = refused.partition("known: ")[2].split(", ")
        assert sorted(known) == sorted(at("AuthorizationPolicy", *path)), kind
    refused = read_authorization_policy(policy(x=1), ROOT).policy.refused
    assert sorted(refused.partition("known: ")[2].split(", ")) == sorted(at("AuthorizationPolicy"))
    entry = {"kind": "ServiceEntry", "metadata": {"name": "e"}, "spec": {"x": 1}}
    with pytest.raises(TranslateError) as raised:
        read_entry(entry, "cluster.local")
    known = str(raised.value).partition("known: ")[2].split(", ")
    assert sorted(known) == sorted(at("ServiceEntry"))
    broken = peer()
    broken["spec"]["x"] = 1
    refused = read_peer_authentication(broken, ROOT).refused
    assert sorted(refused.partition("known: ")[2].split(", ")) == sorted(at("PeerAuthentication"))
