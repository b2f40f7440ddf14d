# SPDX-License-Identifier: Apache-2.0
"""Follows the objects of one kind: list, then watch, as client-go's reflector does.

    list (pages) ──▶ watch from its resourceVersion ──▶ ended, cut, silent ──▶ watch from the last
      ▲                                                                         version seen
      └───────────── 410 Gone, or the kind was not installed ◀──────────────────┘

One thread per kind. Events are delivered in that thread and in order. A list after 410 Gone first
deletes what vanished in between, then delivers every listed object again. Each object is decoded
once, and only the fields that are used (`object_decoder`); the reflector itself remembers names.
An error concerns one object only: the others are delivered, and all are listed again afterwards.
The kubernetes package's informer is not used: decision 0016 has the measurements.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from ztunnel.kube.client.object_decoder import Event, EventType, Page, PartialDecoder
from ztunnel.kube.client.request import (
    GONE,
    JSON,
    METADATA,
    METADATA_LIST,
    NOT_FOUND,
    ApiError,
    LineStream,
    Request,
    send_raw,
)
from ztunnel.kube.objects.fields import Object

PAGE_LIMIT = 500  # objects per list response; client-go's default
LIST_TIMEOUT_S = 60.0  # for each read of a response
WATCH_TIMEOUT_S = (240.0, 480.0)  # the server ends a watch; random, so that agents spread
SILENCE_TIMEOUT_S = 90.0  # without a byte: the server sends bookmarks every 60 s
MIN_WATCH_S = 1.0  # a watch that ends sooner counts as failed
BACKOFF_S = (0.2, 5.0)  # first and longest, doubled each time
NOT_INSTALLED_RETRY_S = 30.0
RELIST_INTERVAL_S = 60.0  # at least, between lists after errors that concern single objects
STOP_TIMEOUT_S = 1.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Resource:
    """A kind and the path of its collection.

    An `optional` kind may be missing on the server (a CRD). It then counts as listed, with no
    objects, and is tried again every `NOT_INSTALLED_RETRY_S`. `metadata_only`: the server sends
    nothing but metadata, for example of Secrets.
    """

    kind: str
    path: str
    field_selector: str = ""
    optional: bool = False
    label_selector: str = ""
    metadata_only: bool = False

    @property
    def query(self) -> dict[str, str]:
        """Query parameters of every list and watch."""
        selectors = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: value for name, value in selectors.items() if value}


@dataclass(frozen=True)
class Health:
    """`last_response` is when the server last sent something (time.monotonic, 0 if never)."""

    connected: bool
    last_response: float
    error: str


class Reflector:
    """`on_event` and `on_listed` (after each complete list) are called in its thread.

    `resync`: list again whenever the server ends the watch (WATCH_TIMEOUT_S), which delivers every
    object again; for consumers that repair what others changed.
    """

    def __init__(
        self,
        client: Any,
        resource: Resource,
        on_event: Callable[[Event], None],
        on_listed: Callable[[], None] = lambda: None,
        *,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
        resync: bool = False,
    ) -> None:
        self.resource = resource
        self.lists = 0  # complete lists
        self.version = ""  # resourceVersion to continue from; empty: list first
        self._client = client
        self._on_event = on_event
        self._on_listed = on_listed
        self._silence_timeout_s = silence_timeout_s
        self._resync = resync
        self._decoder = PartialDecoder(resource.kind)
        self._names: dict[str, set[str]] = defaultdict(set)  # by namespace
        self._stopped = threading.Event()
        self._stream: LineStream | None = None
        self._watch_began = 0.0
        self._relist_at = float("inf")  # time.monotonic; an error concerned a single object
        self._malformed_at = ""  # version at which the watch delivered something else than an event
        self._health = Health(False, 0.0, "not listed yet")
        self._thread = threading.Thread(
            target=self._run, name=f"reflector-{resource.kind}", daemon=True
        )

    @property
    def health(self) -> Health:
        """Whether the server answers; safe from any thread."""
        return self._health

    def has(self, namespace: str, name: str) -> bool:
        """Whether an object exists; safe from any thread."""
        names = self._names.get(namespace)
        return names is not None and name in names

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Interrupt the watch and every wait; see `stop_all` for joining the thread."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.shutdown()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread. A connection attempt in progress may outlast the timeout."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            self._watch_began = float("inf")
            failed = self._list_and_watch()
            was_short = time.monotonic() - self._watch_began < MIN_WATCH_S
            failures = (failures if was_short else 0) + (failed or was_short)
            if failures:
                self._stopped.wait(backoff_s(failures))

    def _list_and_watch(self) -> bool:
        """One round; whether it failed."""
        try:
            if not self.version:
                self._list()
            self._watch()
        except ApiError as error:
            if error.status == GONE:
                self.version = ""
            if error.status == NOT_FOUND and self.resource.optional:
                self._wait_until_installed()
                return False
            self._report_failure(str(error))
            return True
        except Exception as error:  # a defect, in a consumer for example: do not end the thread
            log.exception("reflector failed", kind=self.resource.kind)
            self.version = ""
            self._report_failure(f"{type(error).__name__}: {error}")
            return True
        finally:
            self._stream = None
        return False

    def _list(self) -> None:
        is_first = not self._names
        listed: dict[str, set[str]] = defaultdict(set)
        later: list[Event] = []
        unidentified = 0
        self._relist_at = float("inf")
        for page in list_pages(self._client, self.resource, self._decoder):
            self._record_response()
            unidentified += page.unidentified
            for obj in page.items:
                metadata = obj["metadata"]
                listed[metadata.get("namespace", "")].add(metadata["name"])
                event = Event(EventType.UPSERT, obj)
                if is_first:  # nothing to delete first: need not hold all objects at once
                    self._deliver(event)
                else:
                    later.append(event)
        if unidentified:
            self._report_unidentified(unidentified)
        # any of the known objects may be the unidentified one: then none counts as deleted
        for namespace, name in () if unidentified else self._vanished(listed):
            metadata = {"namespace": namespace, "name": name}
            gone = {"kind": self.resource.kind, "metadata": metadata}
            self._deliver(Event(EventType.DELETE, gone))
        for event in later:
            self._deliver(event)
        self.lists += 1
        self.version = page.resource_version
        self._on_listed()

    def _vanished(self, listed: dict[str, set[str]]) -> list[tuple[str, str]]:
        return [
            (namespace, name)
            for namespace, names in self._names.items()
            for name in names - listed.get(namespace, set())
        ]

    def _watch(self) -> None:
        query = {
            **self.resource.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.version,
            "timeoutSeconds": f"{random.uniform(*WATCH_TIMEOUT_S):.0f}",
        }
        accept = METADATA if self.resource.metadata_only else JSON
        request = Request(
            "GET", self.resource.path, query, timeout_s=self._silence_timeout_s, accept=accept
        )
        with closing(LineStream(self._client, request)) as stream:
            self._watch_began = time.monotonic()
            self._record_response()
            self._stream = stream
            if self._stopped.is_set():  # `stop` was called before there was a stream to shut down
                return
            for line in stream:
                self._record_response()
                self._handle(line)
                if time.monotonic() >= self._relist_at:
                    break
        if self._resync or time.monotonic() >= self._relist_at:
            self.version = ""

    def _handle(self, line: bytes) -> None:
        try:
            event = self._decoder.event(line)
        except msgspec.DecodeError as error:
            if self._malformed_at == self.version:  # again: a list skips what cannot be decoded
                self.version = ""
            self._malformed_at = self.version
            raise ApiError(0, f"{self.resource.path}: not a watch event: {error}") from error
        if event.type is EventType.ERROR:
            raise ApiError(int(event.object.get("code", 0)), str(event.object.get("message", "")))
        self.version = event.object["metadata"].get("resourceVersion") or self.version
        if event.type is not EventType.BOOKMARK:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        metadata = event.object["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if event.type is EventType.UPSERT:
            self._names[namespace].add(name)
        else:
            self._names[namespace].discard(name)
        try:
            self._on_event(event)
        except Exception:  # a defect of the consumer: continue with the other objects
            log.exception(
                "event handler failed", kind=self.resource.kind, namespace=namespace, name=name
            )
            self._relist_later()

    def _report_unidentified(self, count: int) -> None:
        log.error(
            "objects without a readable name ignored",
            kind=self.resource.kind,
            count=count,
            note="objects of this kind that were deleted meanwhile stay in force",
        )
        self._relist_later()

    def _relist_later(self) -> None:
        self._relist_at = min(self._relist_at, time.monotonic() + RELIST_INTERVAL_S)

    def _wait_until_installed(self) -> None:
        """The server does not have the kind: what was known of it stays in force."""
        self.version = ""
        self._record_response()
        self._on_listed()
        self._watch_began = time.monotonic() - MIN_WATCH_S  # expected: no backoff on top
        self._stopped.wait(NOT_INSTALLED_RETRY_S * random.uniform(0.5, 1.0))

    def _record_response(self) -> None:
        before = self._health
        self._health = Health(True, time.monotonic(), "")
        if not before.connected and before.last_response:
            log.info("watch restored", kind=self.resource.kind)

    def _report_failure(self, reason: str) -> None:
        before = self._health
        self._health = Health(False, before.last_response, reason)
        if not self._stopped.is_set() and (before.connected or before.error != reason):
            log.warning(
                "watch failed",
                kind=self.resource.kind,
                error=reason,
                note="last known state stays in force",
            )


def list_pages(client: Any, resource: Resource, decoder: PartialDecoder) -> Iterator[Page]:
    """The pages of one list. Raises ApiError."""
    query = {**resource.query, "limit": str(PAGE_LIMIT)}
    accept = METADATA_LIST if resource.metadata_only else JSON
    while True:
        request = Request("GET", resource.path, query, timeout_s=LIST_TIMEOUT_S, accept=accept)
        body = send_raw(client, request)
        try:
            page = decoder.page(body)
        except msgspec.DecodeError as error:
            raise ApiError(0, f"{resource.path}: response is not a list: {error}") from error
        yield page
        if not page.continue_token:
            return
        query = {**query, "continue": page.continue_token}


def list_objects(client: Any, resource: Resource) -> Iterator[Object]:
    """List once. Raises ApiError."""
    for page in list_pages(client, resource, PartialDecoder(resource.kind)):
        yield from page.items


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: exponential, with jitter."""
    first, longest = BACKOFF_S
    return min(first * 2.0 ** min(failures - 1, 16), longest) * random.uniform(0.5, 1.0)


def stop_all(reflectors: Iterable[Reflector]) -> None:
    """Stop them together; returns after STOP_TIMEOUT_S at most."""
    stopping, deadline = list(reflectors), time.monotonic() + STOP_TIMEOUT_S
    for each in stopping:
        each.stop()
    for each in stopping:
        each.join(max(0.0, deadline - time.monotonic()))
