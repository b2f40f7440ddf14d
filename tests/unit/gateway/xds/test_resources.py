# SPDX-License-Identifier: Apache-2.0
"""Envoy's API from its program, and the encoding of resources with a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.gateway.xds import binary_scan, descriptors, wire
from ztunnel.gateway.xds.descriptors import ApiError, EncodeError, EnvoyApi
from ztunnel.gateway.xds.resources import CLUSTER, LISTENER, ROUTES, ResourceEncoder

Json = dict[str, Any]


@pytest.fixture(scope="module")
def api() -> EnvoyApi:
    return descriptors.load()


def listener(*chains: str, name: str = "l") -> Json:
    return {"name": name, "filter_chains": [{"name": chain} for chain in chains]}


def decoded(api: EnvoyApi, config: Any, url: str, name: str) -> Json:
    """The resource as Envoy receives it."""
    message: Any = api.decode("envoy.service.discovery.v3.Resource", config[url][name].envelope())
    assert (message.name, message.version) == (name, config[url][name].version)
    assert message.resource.type_url == url
    kind = url.partition("/")[2]
    return api.to_dict(api.decode(kind, message.resource.value))


def test_api_of_the_installed_envoy_is_complete(api: EnvoyApi) -> None:
    assert sum(name.startswith("envoy/") for name in api.files) > 400
    for name in (
        "envoy.config.cluster.v3.Cluster",
        "google.protobuf.Any",
        "xds.type.matcher.v3.Matcher",
    ):
        api.message(name)


def test_api_file_is_equivalent_to_the_program(api: EnvoyApi, tmp_path: Path) -> None:
    path = tmp_path / "api.binpb"
    path.write_bytes(api.serialize())
    assert descriptors.load(path).files.keys() == api.files.keys()


@pytest.mark.parametrize("octets", [b"", b"\x00" * 64, b"\n\x05hello", b"\x7fELF" + b"x" * 100])
def test_file_without_an_api_is_an_error_with_a_hint(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "none"
    path.write_bytes(octets)
    with pytest.raises(ApiError, match="hint: set --envoy-api"):
        descriptors.load(path)


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_scan_accepts_any_bytes(before: bytes, after: bytes) -> None:
    name = b"\n\x0benvoy/a.proto"[:13]
    binary_scan.scan(before + b"\n\x07a.proto" + after + name)


def test_unknown_field_is_an_error_that_names_it(api: EnvoyApi) -> None:
    with pytest.raises(EncodeError, match="nope"):
        api.encode("envoy.config.cluster.v3.Cluster", {"name": "c", "nope": 1})


def test_assembled_resource_equals_the_one_encoded_as_a_whole(api: EnvoyApi) -> None:
    value = listener("a", "b")
    config, invalid = ResourceEncoder(api).encode({LISTENER: {"l": value}})
    assert invalid == []
    assert decoded(api, config, LISTENER, "l") == value


def test_equal_content_has_the_same_version_in_another_process(api: EnvoyApi) -> None:
    def version(value: Json) -> str:
        return ResourceEncoder(api).encode({LISTENER: {"l": value}})[0][LISTENER]["l"].version

    assert version(listener("a", "b")) == version(listener("a", "b"))
    assert version(listener("a", "b")) != version(listener("a"))
    assert version(listener("a", "b")) != version(listener("b", "a"))


def test_only_changed_parts_are_encoded_again(
    api: EnvoyApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ResourceEncoder(api)
    encoder.encode({LISTENER: {"l": listener("a", "b")}})
    encoded: list[str] = []
    original = api.encode

    def encode(name: str, value: Any) -> bytes:
        encoded.append(str(value.get("name")))
        return original(name, value)

    monkeypatch.setattr(api, "encode", encode)
    encoder.encode({LISTENER: {"l": listener("a", "c")}})
    assert encoded == ["c"]


def test_last_valid_version_replaces_an_invalid_resource_or_part(api: EnvoyApi) -> None:
    encoder = ResourceEncoder(api)
    good: dict[str, Json] = {CLUSTER: {"c": {"name": "c"}}, LISTENER: {"l": listener("a", "b")}}
    before, _ = encoder.encode(good)
    broken = listener("a", "b")
    broken["filter_chains"][0]["nope"] = 1
    bad: dict[str, Json] = {
        CLUSTER: {"c": {"name": "c", "nope": 1}, "new": {"nope": 1}},
        LISTENER: {"l": broken},
    }
    for _ in range(2):
        after, invalid = encoder.encode(bad)
        assert {each.name for each in invalid} == {"c", "new", "l/a"}
        assert after[CLUSTER] == {"c": before[CLUSTER]["c"]}
        assert after[LISTENER] == before[LISTENER]
    assert encoder.encode(good) == (before, [])


def test_cluster_names_its_endpoints(api: EnvoyApi) -> None:
    values: Json = {
        "a": {"name": "a", "type": "EDS", "eds_cluster_config": {"service_name": "x"}},
        "b": {"name": "b", "type": "STATIC"},
    }
    config, _ = ResourceEncoder(api).encode({CLUSTER: values})
    assert {name: each.endpoints for name, each in config[CLUSTER].items()} == {"a": "x", "b": ""}


def test_version_of_a_listener_tells_which_chains_it_has(api: EnvoyApi) -> None:
    old, _ = ResourceEncoder(api).encode({LISTENER: {"l": listener("a", "b")}})
    new, _ = ResourceEncoder(api).encode({LISTENER: {"l": listener("b", "c")}})
    common = new[LISTENER]["l"].with_parts_of(old[LISTENER]["l"].version)
    assert common is not None
    assert list(common.parts) == ["b"]
    routes, _ = ResourceEncoder(api).encode({ROUTES: {"r": {"name": "r"}}})
    assert routes[ROUTES]["r"].with_parts_of("0123") is None


@given(st.integers(0, 1 << 63))
def test_varint_of_any_size(value: int) -> None:
    octets, result = wire.varint(value), 0
    for index, octet in enumerate(octets):
        result |= (octet & 0x7F) << 7 * index
    assert result == value
