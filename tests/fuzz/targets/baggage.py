# SPDX-License-Identifier: Apache-2.0
"""Parsed baggage has no control characters, is within the limits, and survives a round trip."""

from __future__ import annotations

from urllib.parse import quote

from tests.fuzz.target import Target, separated
from ztunnel.mesh.headers.baggage import MAX_MEMBERS, BaggageError, parse_baggage

_KEYS = (b"k8s.cluster.name", b"k8s.namespace.name", b"k8s.deployment.name", b"service.name")


def check(octets: bytes) -> None:
    try:
        found = parse_baggage(octets)
    except BaggageError:
        return
    assert len(found) <= MAX_MEMBERS
    for key, value in found.items():
        assert key, "a member without a key"
        assert key.isprintable()
        assert value.isprintable()
    again = ",".join(f"{key}={quote(value, safe='')}" for key, value in found.items())
    if len(again) <= 8192:  # each escape takes three bytes
        kept = {key: value.strip() for key, value in found.items()}
        assert {key: value.strip() for key, value in parse_baggage(again.encode()).items()} == kept


TARGET = Target(
    check,
    seeds=(
        b"k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,"
        b"service.name=web,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1",
        b"a=b;property=c;d , e = %2C%3D%25 ,, a=again",
        b",".join(b"k%d=v" % number for number in range(64)),
    ),
    mutate=separated(
        b",", [b"=", b"a=%00", b"k=%C3%A9", b" = ", b";=", *(k + b"=x" for k in _KEYS)]
    ),
    words=(*_KEYS, b"=", b",", b";", b"%2C", b"%00", b"%ff", b"%e2%80%a8"),
    max_len=9000,
)
