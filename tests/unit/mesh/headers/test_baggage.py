# SPDX-License-Identifier: Apache-2.0
"""The `baggage` header: the keys of istio/ztunnel, and hostile input."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import workload
from ztunnel.mesh.headers.baggage import (
    MAX_BAGGAGE_BYTES,
    MAX_MEMBERS,
    BaggageError,
    baggage,
    parse_baggage,
)

POD = workload("web-1", "10.0.0.1")

# Any text a person could see, with what separates members, keys and properties.
printable = st.text(min_size=1, max_size=40).filter(str.isprintable) | st.sampled_from(
    ["a,b", "a=b", "a;b", "100%", "%2C", " a ", '"', "\\", "ü"]
)
near_headers = st.text(alphabet="k8s.pod=,;%2C \t\x00\x7f", max_size=100)


def test_every_key_that_istio_sends() -> None:
    labels = {
        "app": "web",
        "version": "v2",
        "topology.kubernetes.io/region": "eu",
        "topology.kubernetes.io/zone": "eu-1",
    }
    pod = msgspec.structs.replace(POD, labels=labels, owner_kind="deployment", owner_name="web")
    assert baggage(pod) == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,"
        "service.name=web,service.version=v2,cloud.region=eu,cloud.availability_zone=eu-1"
    )


def test_bare_pod_is_its_own_service() -> None:
    assert parse_baggage(baggage(POD).encode()) == {
        "k8s.cluster.name": "Kubernetes",
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "web-1",
        "service.name": "web-1",
        "service.version": "latest",
    }


@pytest.mark.parametrize("kind", ["deployment", "cronjob", "job", "pod"])
def test_owner_is_named_by_its_kind(kind: str) -> None:
    pod = msgspec.structs.replace(POD, owner_kind=kind, owner_name="owner")
    assert f",k8s.{kind}.name=owner," in baggage(pod)


def test_owner_of_a_kind_without_a_key_is_named_as_a_pod() -> None:
    pod = msgspec.structs.replace(POD, owner_kind="statefulset", owner_name="db")
    assert ",k8s.pod.name=db," in baggage(pod)


@pytest.mark.parametrize(
    ("labels", "name", "version"),
    [
        ({"app": "a", "version": "1"}, "a", "1"),
        ({"app": "a", "app.kubernetes.io/name": "b"}, "b", "latest"),
        (
            {
                "app.kubernetes.io/name": "b",
                "service.istio.io/canonical-name": "c",
                "version": "1",
                "app.kubernetes.io/version": "2",
                "service.istio.io/canonical-revision": "3",
            },
            "c",
            "3",
        ),
        ({"version": "1", "app.kubernetes.io/version": "2"}, "web-1", "2"),
        ({"app": "", "version": ""}, "web-1", "latest"),
    ],
)
def test_canonical_name_and_revision_have_istios_order_of_labels(
    labels: dict[str, str], name: str, version: str
) -> None:
    said = parse_baggage(baggage(msgspec.structs.replace(POD, labels=labels)).encode())
    assert (said["service.name"], said["service.version"]) == (name, version)


@given(printable, printable, printable)
def test_any_printable_value_survives_the_header(cluster: str, name: str, app: str) -> None:
    pod = msgspec.structs.replace(POD, cluster=cluster, name=name, labels={"app": app})
    header = baggage(pod)
    assert header.isascii()
    assert header.isprintable()
    said = parse_baggage(header.encode("ascii"))
    assert said["k8s.cluster.name"] == cluster
    assert said["k8s.pod.name"] == name
    assert said["service.name"] == app
    assert len(said) == 5


@given(st.one_of(st.binary(max_size=300), near_headers.map(str.encode)))
def test_any_bytes_parse_to_printable_text_or_raise_baggage_error(value: bytes) -> None:
    for candidate in (value, b"a=b," + value, b"a=" + value):
        try:
            found = parse_baggage(candidate)
        except BaggageError:
            continue
        assert all(key and (key + said).isprintable() for key, said in found.items())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", {}),
        (b" , ,", {}),
        (b"a=", {"a": ""}),
        (b"a=b=c", {"a": "b=c"}),
        (b" a = b , c = d ", {"a": "b", "c": "d"}),
        (b"a=1,a=2", {"a": "2"}),
        (b"a=1;ttl=5;x", {"a": "1"}),
        (b"a=x%2Cy%3Bz", {"a": "x,y;z"}),
        (b"a=100%", {"a": "100%"}),
        (b"a=%zz", {"a": "%zz"}),
    ],
)
def test_w3c_baggage_forms_are_parsed(value: bytes, expected: dict[str, str]) -> None:
    assert parse_baggage(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"=b",
        b" =b",
        b"a=1,b",
        b"a=\x00",
        b"a=x\ny",
        b"a=%00",
        b"a=%1b[31m",
        b"a=%0d%0aevil",
        b"a\x00=b",
        b"a\x1b[31m=b",
        b"a=%E2%80%AE",  # right-to-left override
        b"a=\xff",
        "a=ü".encode(),
    ],
)
def test_malformed_baggage_and_control_characters_are_rejected(value: bytes) -> None:
    with pytest.raises(BaggageError):
        parse_baggage(value)


def test_size_limit() -> None:
    assert parse_baggage(b"a=" + b"x" * (MAX_BAGGAGE_BYTES - 2))
    with pytest.raises(BaggageError, match="8193 bytes; limit 8192"):
        parse_baggage(b"a=" + b"x" * (MAX_BAGGAGE_BYTES - 1))


def test_member_limit() -> None:
    members = [b"k%d=v" % n for n in range(MAX_MEMBERS + 1)]
    assert len(parse_baggage(b",".join(members[:-1]))) == MAX_MEMBERS
    with pytest.raises(BaggageError, match="65 members; limit 64"):
        parse_baggage(b",".join(members))
