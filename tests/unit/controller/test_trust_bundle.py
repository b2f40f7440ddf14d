# SPDX-License-Identifier: Apache-2.0
"""Roots overlap while the CA changes, and the old one goes when nothing needs it any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.controller.trust_bundle import plan, read_roots
from ztunnel.identity import ca


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    made = tmp_path_factory.mktemp("trust")
    old, new = (_root(made / name) for name in ("old", "new"))
    return old, new


def _root(directory: Path) -> bytes:
    return ca.load_or_create(directory, "cluster.local").roots_pem


def _name(root: bytes) -> str:
    (name,) = read_roots(root)
    return name


def test_first_roots_are_published_as_they_are(roots: tuple[bytes, bytes]) -> None:
    trust = plan([roots[0]], b"", {}, now=100, keep=10)
    assert trust.bundle == roots[0]
    assert not trust.retiring


def test_old_root_stays_until_what_it_signed_is_over(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    first = plan([new], old, {}, now=100, keep=10)
    assert set(first.roots) == {_name(old), _name(new)}
    assert first.retiring == {_name(old): 110}
    later = plan([new], first.bundle, first.retiring, now=109, keep=10)
    assert later == first
    last = plan([new], first.bundle, first.retiring, now=110, keep=10)
    assert last.bundle == new
    assert not last.retiring


def test_root_that_comes_back_does_not_retire(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    back = plan([old, new], old + new, {_name(old): 105.0}, now=104, keep=10)
    assert set(back.roots) == {_name(old), _name(new)}
    assert not back.retiring


def test_retirement_can_be_shortened_but_never_put_off(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    far = plan([new], old + new, {_name(old): 1e12}, now=100, keep=10)
    assert far.retiring == {_name(old): 110}
    soon = plan([new], old + new, {_name(old): 50.0}, now=100, keep=10)
    assert soon.bundle == new


def test_bundle_is_the_same_text_for_the_same_roots(roots: tuple[bytes, bytes]) -> None:
    old, new = roots
    one = plan([old + new], b"", {}, now=0, keep=1)
    assert one.bundle == plan([new, old], new, {}, now=5, keep=1).bundle


@pytest.mark.parametrize("pem", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_broken_bundle_has_no_roots(pem: bytes) -> None:
    assert read_roots(pem) == {}
