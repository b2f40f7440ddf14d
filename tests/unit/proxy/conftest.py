# SPDX-License-Identifier: Apache-2.0
"""Two nodes with one pod each: `a` runs the client, `b` runs `app`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.certificates import Authority
from tests.unit.proxy.harness import App, Node, closing_all, fresh_ip, workload


@dataclass
class Pair:
    a: Node
    b: Node
    app: App
    authority: Authority


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def fresh_pair(authority: Authority) -> Iterator[Pair]:
    """Nodes that are not started: the test chooses the certificates."""
    mesh = [workload("a", fresh_ip()), workload("b", fresh_ip())]
    pair = Pair(Node("a", mesh), Node("b", mesh), App(mesh[1].addresses[0]), authority)
    pair.a.target = pair.app.address
    with closing_all(pair.a, pair.b, pair.app):
        yield pair


@pytest.fixture
def pair(fresh_pair: Pair) -> Pair:
    """Both nodes serve, with valid certificates."""
    for node in (fresh_pair.a, fresh_pair.b):
        node.start(fresh_pair.authority.issue(node.me.identity))
    return fresh_pair
