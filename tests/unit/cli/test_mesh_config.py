# SPDX-License-Identifier: Apache-2.0
"""Mesh settings from an IstioOperator document: applied, ignored and rejected fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ztctl.cluster.mesh_config import (
    Effect,
    MeshConfigError,
    MeshSettings,
    OutboundTrafficPolicy,
    read,
)

AMBIENT = """
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  meshConfig:
    defaultConfig:
      proxyProtocol: ambient
    enableAmbient: true
"""


def _document(mesh_config: Any = None, **spec: Any) -> dict[str, Any]:
    if mesh_config is not None:
        spec["meshConfig"] = mesh_config
    return {"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "spec": spec}


def test_ambient_document_is_accepted_without_settings() -> None:
    settings, notes = read(yaml.safe_load(AMBIENT))
    assert settings == MeshSettings()
    assert {note.field for note in notes} == {
        "spec.meshConfig.defaultConfig.proxyProtocol",
        "spec.meshConfig.enableAmbient",
    }
    assert {note.effect for note in notes} == {Effect.ALWAYS}


def test_supported_fields_become_settings() -> None:
    selectors: list[dict[str, Any]] = [
        {"matchLabels": {"mesh": "yes"}},
        {"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["dev"]}]},
    ]
    settings, notes = read(
        _document(
            {
                "trustDomain": "example.org",
                "rootNamespace": "policies",
                "discoverySelectors": selectors,
                "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
            }
        )
    )
    assert settings == MeshSettings(
        "example.org", "policies", tuple(selectors), OutboundTrafficPolicy.REGISTRY_ONLY
    )
    assert {note.effect for note in notes} == {Effect.APPLIED}


def test_every_ignored_field_gets_a_note_with_the_reason() -> None:
    _, notes = read(
        {
            **_document(
                {"accessLogFile": "/dev/stdout", "defaultConfig": {"tracing": {"sampling": 1}}},
                profile="demo",
                hub="docker.io/istio",
                components={"cni": {"enabled": True}},
                values={"global": {"logging": {"level": "debug"}}},
                nonsense=[1, 2],
            ),
            "metadata": {"name": "mesh"},
        }
    )
    assert {note.field: note.effect for note in notes} == dict.fromkeys(
        (
            "spec.meshConfig.accessLogFile",
            "spec.meshConfig.defaultConfig.tracing.sampling",
            "spec.profile",
            "spec.hub",
            "spec.components.cni.enabled",
            "spec.values.global.logging.level",
            "spec.nonsense",
            "metadata.name",
        ),
        Effect.IGNORED,
    )
    assert all(note.meaning for note in notes)


INVALID: dict[str, tuple[Any, str]] = {
    "nothing": (None, "found nothing"),
    "a list": ([1], "found list"),
    "another kind": ({"apiVersion": "v1", "kind": "Pod"}, "found v1 and Pod"),
    "no ambient": (_document({"enableAmbient": False}), "spec.meshConfig.enableAmbient: False"),
    "another proxy protocol": (
        _document({"defaultConfig": {"proxyProtocol": "envoy"}}),
        "proxyProtocol",
    ),
    "an invalid trust domain": (_document({"trustDomain": "A_b"}), "not a lower-case DNS name"),
    "a trust domain that is a number": (_document({"trustDomain": 7}), "not a lower-case DNS name"),
    "an option in a name": (_document({"rootNamespace": "a --x=y"}), "not a lower-case DNS name"),
    "an unknown mode": (_document({"outboundTrafficPolicy": {"mode": "ALLOW"}}), "REGISTRY_ONLY"),
    "selectors that are no list": (_document({"discoverySelectors": {}}), "expected a list"),
    "a selector with other fields": (
        _document({"discoverySelectors": [{"labels": {}}]}),
        r"discoverySelectors\[0\]",
    ),
    "a label that is no text": (
        _document({"discoverySelectors": [{"matchLabels": {"a": True}}]}),
        "as text",
    ),
    "an unknown operator": (
        _document({"discoverySelectors": [{"matchExpressions": [{"key": "a", "operator": "Is"}]}]}),
        "DoesNotExist",
    ),
    "In without values": (
        _document({"discoverySelectors": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]}),
        "need values",
    ),
    "text where fields belong": (_document("ambient"), "expected fields below"),
}


@pytest.mark.parametrize("case", INVALID)
def test_unsupported_document_is_rejected_with_the_field(case: str) -> None:
    document, message = INVALID[case]
    with pytest.raises(MeshConfigError, match=message):
        read(document)


names = st.sampled_from(["meshConfig", "defaultConfig", "enableAmbient", "trustDomain", "x", ""])
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@given(trees)
def test_any_document_is_parsed_or_rejected(spec: Any) -> None:
    """An accepted document has a note for each of its leaves, and sets only what it contains."""
    document = {"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "spec": spec}
    try:
        settings, notes = read(document)
    except MeshConfigError:
        return
    leaves = dict(_leaves(spec, "spec"))
    assert [note.field for note in notes] == list(leaves)
    applied = {note.field for note in notes if note.effect is Effect.APPLIED}
    assert applied == leaves.keys() & {"spec.meshConfig.trustDomain"}
    domain = leaves.get("spec.meshConfig.trustDomain", MeshSettings().trust_domain)
    assert settings == MeshSettings(trust_domain=domain)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}")
    else:
        yield path, value
