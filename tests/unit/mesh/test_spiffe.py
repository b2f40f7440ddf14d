# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs: exactly Istio's form; near misses are attacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import workload
from ztunnel.mesh.spiffe import SpiffeError, SpiffeId, parse

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=3).map(".".join)


@given(names, labels, names)
def test_formatted_id_parses_to_its_parts(domain: str, namespace: str, account: str) -> None:
    made = SpiffeId(domain, namespace, account)
    assert parse(str(made)) == made


@given(st.text())
def test_any_text_parses_to_itself_or_raises_spiffe_error(text: str) -> None:
    for candidate in (text, f"spiffe://{text}", f"spiffe://cluster.local/ns/{text}"):
        try:
            found = parse(candidate)
        except SpiffeError:
            continue
        assert str(found) == candidate


def test_workload_identity_is_a_valid_spiffe_id() -> None:
    found = parse(workload("a", "10.0.0.1", account="web").identity)
    assert found == ("cluster.local", "shop", "web")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cluster.local/ns/shop/sa/web",
        "spiffe:/cluster.local/ns/shop/sa/web",
        "spiffe:///ns/shop/sa/web",
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/shop",
        "spiffe://cluster.local/ns/shop/sa",
        "spiffe://cluster.local/ns/shop/sa/",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe://cluster.local/ns/shop/sa/web/",
        "spiffe://cluster.local/ns/shop/sa/web/extra",
        "spiffe://cluster.local/x/ns/shop/sa/web",
        "spiffe://cluster.local//ns/shop/sa/web",
        "spiffe://cluster.local/sa/web/ns/shop",
        "spiffe://cluster.local/ns/shop/sa/web?x=1",
        "spiffe://cluster.local/ns/shop/sa/web#x",
        "spiffe://cluster.local/ns/shop/sa/web\n",
        "spiffe://cluster.local/ns/shop/sa/web\x00",
        " spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/../shop/sa/web",
        "spiffe://cluster.local/ns/sh%6fp/sa/web",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://user@cluster.local/ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://Cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/NS/shop/SA/web",
        "spiffe://cluster.local/ns/Shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/Web",
        "spiffe://cluster..local/ns/shop/sa/web",
        "spiffe://.cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local./ns/shop/sa/web",
        "spiffe://cluster.local/ns/-shop/sa/web",
        "spiffe://cluster.local/ns/shop-/sa/web",
        "spiffe://cluster.local/ns/shop.x/sa/web",
        "spiffe://cluster.local/ns/" + "a" * 64 + "/sa/web",
        "spiffe://" + "a." * 1100 + "a/ns/shop/sa/web",
    ],
)
def test_near_miss_of_an_id_is_rejected(text: str) -> None:
    with pytest.raises(SpiffeError):
        parse(text)
