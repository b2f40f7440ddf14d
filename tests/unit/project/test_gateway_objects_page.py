# SPDX-License-Identifier: Apache-2.0
"""docs/reference/gateway-objects.md names every field of an overlay that is honoured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ztunnel.l7.deployment.overlay import OverlayKey, honoured_fields

PAGE = Path(__file__).parents[3] / "docs/reference/gateway-objects.md"


def leaves(tree: Mapping[str, Any]) -> Iterator[str]:
    for name, inner in tree.items():
        if inner is None:
            yield name
        else:
            yield from leaves(inner)


@pytest.mark.parametrize("key", OverlayKey)
@pytest.mark.parametrize("is_ingress", [False, True])
def test_page_names_the_honoured_fields(key: OverlayKey, is_ingress: bool) -> None:
    text = PAGE.read_text("utf-8")
    assert f"`{key}`" in text
    for name in leaves(honoured_fields(key, is_ingress=is_ingress)):
        assert f"`{name}`" in text or f".{name}`" in text, name
