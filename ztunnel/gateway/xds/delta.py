# SPDX-License-Identifier: Apache-2.0
"""The delta ADS protocol with one Envoy, as a state machine. Pure: the caller passes the time.

Source: envoyproxy.io, "xDS REST and gRPC protocol", incremental xDS and "eventual consistency".
Envoy gets what is new before what refers to it, and loses what is gone after that:

    clusters --> endpoints --> (new clusters are warm) --> listeners, routes --> removed clusters

A stage waits for Envoy's answers to the earlier ones, for `MAX_WAIT_S` at most. A rejected resource
(`subscription`) delays no stage. Clusters are removed `CLUSTER_DRAIN_S` after the last reference:
connections that Envoy accepted before still use them, and clients learn of a change at different
moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ztunnel.gateway.xds.resources import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    ROUTES,
    SECRET,
    Config,
    Resource,
)
from ztunnel.gateway.xds.secrets import SecretSubscription
from ztunnel.gateway.xds.subscription import (
    Memory,
    ProtocolError,
    Rejection,
    Subscription,
)
from ztunnel.l7.deployment.settings import DRAIN_S

MAX_WAIT_S = 2.0  # a cluster that never gets warm must not keep all others from being used
CLUSTER_DRAIN_S = DRAIN_S + 5.0  # Envoy closes connections of removed filter chains after DRAIN_S
MAX_TYPES = 32  # resource types of a stream; Envoy has about ten


@dataclass(frozen=True)
class Request:
    """DeltaDiscoveryRequest. `error`: Envoy's message if it rejects the response `nonce`."""

    type_url: str
    nonce: str = ""
    error: str | None = None
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # initial_resource_versions


@dataclass(frozen=True)
class Response:
    """DeltaDiscoveryResponse."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()


class SyncState(StrEnum):
    """Whether an Envoy has the wanted version of a resource."""

    SYNCED = "SYNCED"
    PENDING = "PENDING"  # to be sent, or sent and not answered yet
    REJECTED = "REJECTED"
    NOT_REQUESTED = "NOT REQUESTED"


@dataclass(frozen=True)
class ResourceStatus:
    """One resource, for introspection. `accepted`: the version that Envoy has."""

    type_url: str
    name: str
    version: str
    accepted: str
    state: SyncState
    message: str = ""


class DeltaSession:
    """One stream. Call `receive` for each request, and send what `responses` returns."""

    def __init__(self, memory: dict[str, Memory] | None = None) -> None:
        """`memory` by type URL: what earlier streams of the same Envoy have shown."""
        self._memory = {} if memory is None else memory
        self._config: Config | None = None
        self._types: dict[str, Subscription] = {}
        self._nonce = 0
        self._warming: set[str] = set()  # endpoints of new clusters that Envoy lacks
        # Endpoints to be sent because their cluster was sent. A changed cluster gets warm with
        # endpoints only, and Envoy answers once it is warm: they must not wait for the answer.
        self._cold: set[str] = set()
        self._waits_since: dict[str, float] = {}  # by type of a blocked stage
        self._unused_since: dict[str, float] = {}  # clusters to be removed

    def set_config(self, config: Config) -> None:
        """Set what Envoy is to have. Before the first call, nothing is sent."""
        self._config = config
        for type_url, subscription in self._types.items():
            subscription.set_wanted(config.get(type_url, {}))
        self._warming &= set(config.get(ENDPOINTS, {}))
        self._cold &= set(config.get(ENDPOINTS, {}))

    def receive(self, request: Request) -> None:
        """Handle a request. Raises ProtocolError."""
        subscription = self._type(request.type_url)
        if request.nonce:
            if request.error is not None:
                subscription.reject(request.nonce, request.error)
            else:
                batch = subscription.acknowledge(request.nonce)
                if batch is not None:
                    self._accepted(request.type_url, batch.resources)
                if isinstance(subscription, SecretSubscription) and subscription.was_repaired:
                    # Envoy rejects new listeners and clusters that use an invalid secret
                    for type_url in (LISTENER, CLUSTER):
                        self._type(type_url).forget_rejections()
        is_first = not subscription.is_open
        if is_first or request.subscribe or request.unsubscribe:
            subscription.unsubscribe(request.unsubscribe)
            subscription.subscribe(request.subscribe, request.versions if is_first else {})

    def responses(self, now: float) -> Iterator[Response]:
        """What to send at `now`, in seconds of any clock."""
        if self._config is None:
            return
        for type_url, subscription in self._ordered():
            if isinstance(subscription, SecretSubscription):
                subscription.start_retries(now)
            for name in self._cold if type_url == ENDPOINTS else ():
                subscription.forget(name)
            upserts, removals = self._may_send(type_url, now)
            kept = self._draining(now) if removals and type_url == CLUSTER else ()
            batch = subscription.next_batch(upserts=upserts, removals=removals, kept=kept)
            if batch is None:
                continue
            self._nonce += 1
            batch.nonce = f"{self._nonce:x}"
            if type_url == CLUSTER:
                names = {each.endpoints for each in batch.resources.values()}
                self._cold |= names & self._config.get(ENDPOINTS, {}).keys()
            elif type_url == ENDPOINTS:
                self._cold -= batch.resources.keys() | batch.removed
            resources = tuple(batch.resources.values())
            yield Response(type_url, batch.nonce, resources, tuple(sorted(batch.removed)))

    @property
    def wait_until(self) -> float | None:
        """When `responses` may return something without a request; None: never."""
        due = [since + MAX_WAIT_S for since in self._waits_since.values()]
        if CLUSTER not in self._waits_since:
            due += [since + CLUSTER_DRAIN_S for since in self._unused_since.values()]
        secrets = self._types.get(SECRET)
        if isinstance(secrets, SecretSubscription) and secrets.retry_at is not None:
            due.append(secrets.retry_at)
        return min(due, default=None)

    @property
    def is_synced(self) -> bool:
        """Whether Envoy has answered everything that it subscribes to."""
        return (
            self._config is not None
            and LISTENER in self._types
            and not any(each.has_work() for each in self._types.values())
        )

    def rejected(self) -> Iterator[tuple[str, Rejection]]:
        """What Envoy rejects at present, with type URLs."""
        for type_url, subscription in self._types.items():
            for rejection in subscription.rejected():
                yield type_url, rejection

    def statuses(self) -> Iterator[ResourceStatus]:
        """Every wanted resource."""
        for type_url, wanted in (self._config or {}).items():
            subscription = self._types.get(type_url) or Subscription()
            messages = {each.name: each for each in subscription.rejected()}
            pending = set(subscription.pending())
            for name, resource in wanted.items():
                accepted = subscription.version(name) or ""
                rejection = messages.get(name)
                if rejection is not None:
                    state = SyncState.REJECTED
                elif name in pending:
                    state = SyncState.PENDING
                else:
                    state = SyncState.SYNCED if accepted else SyncState.NOT_REQUESTED
                message = rejection.message if rejection is not None else ""
                yield ResourceStatus(type_url, name, resource.version, accepted, state, message)

    def _type(self, type_url: str) -> Subscription:
        found = self._types.get(type_url)
        if found is None:
            if len(self._types) >= MAX_TYPES:
                raise ProtocolError(f"more than {MAX_TYPES} resource types")
            memory = self._memory.setdefault(type_url, Memory())
            made = SecretSubscription if type_url == SECRET else Subscription
            found = self._types[type_url] = made(memory)
            if self._config is not None:
                found.set_wanted(self._config.get(type_url, {}))
        return found

    def _ordered(self) -> list[tuple[str, Subscription]]:
        order = {CLUSTER: 0, ENDPOINTS: 1, LISTENER: 2, ROUTES: 3}
        return sorted(self._types.items(), key=lambda item: order.get(item[0], 0))

    def _may_send(self, type_url: str, now: float) -> tuple[bool, bool]:
        """Whether upserts and removals of a type may be sent now."""
        if type_url in (LISTENER, ROUTES):
            is_free = not self._warming and not self._has_work(CLUSTER, ENDPOINTS)
            is_free = self._is_due(type_url, is_free, now)
            return is_free, is_free
        if type_url in (CLUSTER, ENDPOINTS):
            is_free = LISTENER in self._types and not self._has_references()
            return True, self._is_due(type_url, is_free, now)
        return True, True

    def _has_references(self) -> bool:
        """Whether Envoy may still have listeners or routes that refer to removed clusters."""
        users = (self._types.get(type_url) for type_url in (LISTENER, ROUTES))
        return any(
            each.has_work() or any(True for _ in each.removable())
            for each in users
            if each is not None and each.is_open
        )

    def _draining(self, now: float) -> set[str]:
        """The clusters without references that connections may still use."""
        before = self._unused_since
        self._unused_since = {
            name: before.get(name, now)
            for name in self._types[CLUSTER].removable()
            if now - before.get(name, now) < CLUSTER_DRAIN_S
        }
        return set(self._unused_since)

    def _is_due(self, type_url: str, is_free: bool, now: float) -> bool:
        """Whether a stage is free, or has waited for long enough."""
        subscription = self._types[type_url]
        has_something = subscription.has_work() or any(True for _ in subscription.removable())
        if is_free or not has_something:
            self._waits_since.pop(type_url, None)
            return is_free
        return now - self._waits_since.setdefault(type_url, now) >= MAX_WAIT_S

    def _has_work(self, *type_urls: str) -> bool:
        found = (self._types.get(type_url) for type_url in type_urls)
        return any(each.has_work() for each in found if each is not None)

    def _accepted(self, type_url: str, resources: Mapping[str, Resource]) -> None:
        if type_url == ENDPOINTS:
            self._warming -= resources.keys() - self._cold
        if type_url != CLUSTER:
            return
        endpoints = self._type(ENDPOINTS)
        for cluster in resources.values():
            name = cluster.endpoints
            if not name or name not in (self._config or {}).get(ENDPOINTS, {}):
                continue
            if name in self._cold or not endpoints.has(name):
                self._warming.add(name)
