# SPDX-License-Identifier: Apache-2.0
"""ServiceEntry names are resolved when new and when due, and keep addresses on failure."""

from __future__ import annotations

from tests.unit.kube.objects.test_service_entries import entry
from ztunnel.agent.cluster.service_entry_dns import ServiceEntryResolver, node_resolver
from ztunnel.kube.view.cluster_view import ClusterView


class Names:
    """A resolver with fixed addresses."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, ...]] = {}
        self.queries: list[str] = []

    async def __call__(self, name: str) -> tuple[str, ...]:
        self.queries.append(name)
        if name not in self.known:
            raise OSError("no such name")
        return self.known[name]


async def test_names_are_resolved_when_due_and_keep_addresses_on_failure() -> None:
    view, names, changes = ClusterView("cluster.local", "Kubernetes"), Names(), []
    resolver = ServiceEntryResolver(
        view.entries, lambda: changes.append(1), names, refresh_interval_s=30
    )

    async def turn(now: float) -> list[tuple[str, ...]]:
        await resolver.resolve_due(now)
        found = view.snapshot().services
        return [tuple(each.address for each in service.endpoints) for service in found]

    assert await turn(0) == []
    view.upsert(entry(resolution="DNS"))
    names.known["api.example.com"] = ("192.0.2.7",)
    assert await turn(1) == [("192.0.2.7",)]
    assert await turn(30) == [("192.0.2.7",)]
    assert names.queries == ["api.example.com"]
    names.known.clear()
    assert await turn(31) == [("192.0.2.7",)]
    names.known["api.example.com"] = ("192.0.2.8",)
    assert await turn(61) == [("192.0.2.8",)]
    assert len(names.queries) == 3
    assert len(changes) == 2


async def test_node_resolver_returns_canonical_addresses() -> None:
    assert set(await node_resolver("localhost")) <= {"127.0.0.1", "::1"}
    assert await node_resolver("192.0.2.7") == ("192.0.2.7",)
