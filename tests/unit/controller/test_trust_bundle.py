# SPDX-License-Identifier: Apache-2.0
"""During a CA rotation, old and new roots overlap until no certificate needs the old root."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.controller.trust_bundle import next_bundle, parse_roots
from ztunnel.identity import ca


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    made = tmp_path_factory.mktemp("trust")
    old, new = (_root(made / name) for name in ("old", "new"))
    return old, new


def _root(directory: Path) -> bytes:
    return ca.load_or_create(directory, "cluster.local").roots_pem


def _name(root: bytes) -> str:
    (name,) = parse_roots(root)
    return name


def test_first_roots_are_published_unchanged(roots: tuple[bytes, bytes]) -> None:
    trust = next_bundle([roots[0]], b"", {}, now=100, retention_s=10)
    assert trust.pem == roots[0]
    assert not trust.expiring


def test_old_root_stays_until_its_certificates_expired(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    first = next_bundle([new], old, {}, now=100, retention_s=10)
    assert set(first.roots) == {_name(old), _name(new)}
    assert first.expiring == {_name(old): 110}
    later = next_bundle([new], first.pem, first.expiring, now=109, retention_s=10)
    assert later == first
    last = next_bundle([new], first.pem, first.expiring, now=110, retention_s=10)
    assert last.pem == new
    assert not last.expiring


def test_restored_root_no_longer_expires(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    back = next_bundle([old, new], old + new, {_name(old): 105.0}, now=104, retention_s=10)
    assert set(back.roots) == {_name(old), _name(new)}
    assert not back.expiring


def test_expiry_can_be_shortened_but_not_extended(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    far = next_bundle([new], old + new, {_name(old): 1e12}, now=100, retention_s=10)
    assert far.expiring == {_name(old): 110}
    soon = next_bundle([new], old + new, {_name(old): 50.0}, now=100, retention_s=10)
    assert soon.pem == new


def test_equal_roots_give_equal_bundle(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    one = next_bundle([old + new], b"", {}, now=0, retention_s=1)
    assert one.pem == next_bundle([new, old], new, {}, now=5, retention_s=1).pem


@pytest.mark.parametrize("pem", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_malformed_bundle_has_no_roots(pem: bytes) -> None:
    assert parse_roots(pem) == {}
