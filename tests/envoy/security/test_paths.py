# SPDX-License-Identifier: Apache-2.0
"""Paths are normalized as a real Envoy does it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.envoy.security.rig import Rig, exchange
from ztunnel.l7.security.paths import normalize_path

PATHS = 3000
TOKENS = [
    *("/", "/", "/", ".", "..", "%2e", "%2E", ";", "a", "b;", "%2f", "\\", "%5c", ";x", "%41", "~"),
    *(
        "%7e",
        "...",
        ":",
        "%3b",
        "?",
        "//",
        "/../",
        "/./",
        "%25",
        "=",
        "^",
        '"',
        "%zz",
        "%c3",
        "[x]",
    ),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig()
    rig.add("any")
    with rig.run(tmp_path_factory.mktemp("paths"), decide_only=True) as running:
        yield running


@pytest.mark.parametrize("seed", [1, 2])
def test_random_paths_are_normalized_as_by_envoy(rig: Rig, seed: int) -> None:
    random = Random(seed)
    with rig.connect("any") as sock:
        for _ in range(PATHS):
            path = "/" + "".join(random.choice(TOKENS) for _ in range(random.randint(1, 7)))
            reply = exchange(sock, path=path)
            assert reply.status == 200
            assert (path, normalize_path(path)) == (path, reply.headers["x-path"])


@pytest.mark.parametrize("path", ["/a b", "/a#b", "/\x7f", "/\xe9", "/a%00", "x", "*"])
def test_invalid_path_is_rejected(rig: Rig, path: str) -> None:
    assert rig.call("any", path=path).status == 400
    assert normalize_path(path) is None


@given(st.text(alphabet="/.%2eE;\\?a", max_size=20))
def test_normalization_is_stable_and_leaves_no_dot_segments(text: str) -> None:
    path = normalize_path(f"/{text}")
    assert path is not None
    segments = path.partition("?")[0].split("/")
    assert "." not in segments
    assert ".." not in segments
