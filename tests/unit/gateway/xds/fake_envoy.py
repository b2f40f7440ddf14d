# SPDX-License-Identifier: Apache-2.0
"""A model of Envoy's side of delta ADS: it applies, rejects, subscribes and reconnects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ztunnel.gateway.xds.delta import DeltaSession, Request, Response
from ztunnel.gateway.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Resource
from ztunnel.gateway.xds.subscription import Memory

WILDCARD_TYPES = (CLUSTER, LISTENER)


def cluster(name: str, content: str = "") -> Resource:
    """A cluster whose endpoints have its name."""
    return Resource(CLUSTER, name, f"{name}={content}".encode(), {}, 0, name)


def endpoints(name: str, content: str = "") -> Resource:
    return Resource(ENDPOINTS, name, f"{name}={content}".encode(), {})


def routes(name: str, *clusters: str) -> Resource:
    """A route configuration that refers to clusters."""
    return Resource(ROUTES, name, ",".join(clusters).encode(), {})


def listener(name: str, **chains: str) -> Resource:
    """A listener whose chains have this content; `routes:x` refers to a route configuration."""
    parts = {chain: content.encode() for chain, content in chains.items()}
    return Resource(LISTENER, name, name.encode(), parts, 3)


def config(*resources: Resource) -> dict[str, dict[str, Resource]]:
    found: dict[str, dict[str, Resource]] = {
        url: {} for url in (CLUSTER, ENDPOINTS, LISTENER, ROUTES)
    }
    for each in resources:
        found[each.type_url][each.name] = each
    return found


class FakeEnvoy:
    """Rejects a response as a whole if `is_valid` is false for one of its resources."""

    def __init__(self, is_valid: Callable[[Resource], bool] = lambda _: True) -> None:
        self.has: dict[str, dict[str, Resource]] = {
            url: {} for url in (CLUSTER, ENDPOINTS, LISTENER, ROUTES)
        }
        self.is_valid = is_valid
        self.journal: list[tuple[str, tuple[str, ...], tuple[str, ...], bool]] = []
        self.broken: list[str] = []  # references to what it did not have
        self.now = 0.0
        self._subscribed: dict[str, set[str]] = {ENDPOINTS: set(), ROUTES: set()}
        self._requested: set[str] = set()
        self.session = DeltaSession()
        self._waiting: list[Response] = []  # received, not answered yet

    def connect(self, memory: dict[str, Memory] | None = None) -> None:
        """Open a stream, with the versions that it has."""
        self.session = DeltaSession(memory)
        self._waiting.clear()
        self._requested = set(WILDCARD_TYPES)
        for type_url in WILDCARD_TYPES:
            self._request(Request(type_url, versions=self._versions(type_url)))
        for type_url, names in self._subscribed.items():
            if names:
                self._request_names(type_url, names, versions=self._versions(type_url))

    def run(self, steps: int = 2000) -> int:
        """Exchange messages until nothing happens; returns the number of responses."""
        for step in range(steps):
            responses, self._waiting = self._waiting, []
            responses += self.session.responses(self.now)
            if not responses:
                if self.session.wait_until is None:
                    return step
                self.now = max(self.now, self.session.wait_until)
                if not (responses := list(self.session.responses(self.now))):
                    return step
            for each in responses:
                self.answer(each)
        raise AssertionError("the exchange does not end")

    def exchange(self, count: int) -> None:
        """Receive what the server sends now, and answer up to `count` responses; others wait."""
        self._waiting += self.session.responses(self.now)
        for _ in range(min(count, len(self._waiting))):
            self.answer(self._waiting.pop(0))
            self._waiting += self.session.responses(self.now)

    def answer(self, response: Response) -> None:
        """Apply or reject a response."""
        invalid = [each.name for each in response.resources if not self.is_valid(each)]
        names = tuple(each.name for each in response.resources)
        self.journal.append((response.type_url, names, response.removed, not invalid))
        if invalid:
            error = f"invalid: {', '.join(invalid)}"
            self._request(Request(response.type_url, nonce=response.nonce, error=error))
            return
        has = self.has[response.type_url]
        has.update({each.name: each for each in response.resources})
        for name in response.removed:
            has.pop(name, None)
        self._check_references()
        self._request(Request(response.type_url, nonce=response.nonce))
        self._resubscribe(ENDPOINTS, set(self.has[CLUSTER]))
        chains = (part for each in self.has[LISTENER].values() for part in each.parts.values())
        references = (part.decode() for part in chains)
        self._resubscribe(ROUTES, {text[7:] for text in references if text.startswith("routes:")})

    def _resubscribe(self, type_url: str, names: set[str]) -> None:
        before, self._subscribed[type_url] = self._subscribed[type_url], names
        new, gone = names - before, before - names
        for name in gone:
            self.has[type_url].pop(name, None)
        if new or gone:
            self._request_names(type_url, new, gone)

    def _request_names(
        self,
        type_url: str,
        new: Iterable[str],
        gone: Iterable[str] = (),
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self._request(
            Request(
                type_url,
                subscribe=tuple(sorted(new)),
                unsubscribe=tuple(sorted(gone)),
                versions=versions or {},
            )
        )

    def _request(self, request: Request) -> None:
        self.session.receive(request)

    def _versions(self, type_url: str) -> dict[str, str]:
        return {name: each.version for name, each in self.has[type_url].items()}

    def _check_references(self) -> None:
        """Record routes to clusters that Envoy lacks, and clusters in use without endpoints."""
        for each in self.has[ROUTES].values():
            for name in each.head.decode().split(","):
                if name and name not in self.has[CLUSTER]:
                    self.broken.append(f"{each.name} -> {name}")
                elif name and name not in self.has[ENDPOINTS]:
                    self.broken.append(f"{each.name} -> {name} without endpoints")
