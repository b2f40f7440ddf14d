# SPDX-License-Identifier: Apache-2.0
"""One kind's list and watch requests, as `kubernetes.informer.SharedInformer` wants them made.

The informer decides what to ask: a list at first and after 410 Gone, else a watch that goes on
where the last one ended. Here is what it leaves open: answers are trimmed while they are read,
lists come in pages, a silent connection is given up, attempts are paced, and one can tell whether
the API server is there. Called from the informer's thread; `health` and `stop` from any.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from kubernetes.client import ApiException
from kubernetes.client.exceptions import NotFoundException

from ztunnel.kube.client.object_decoder import PartialDecoder
from ztunnel.kube.objects.fields import Object

PAGE = 500  # objects in one answer; client-go's default
WATCH_FOR = (240, 480)  # seconds until the server ends a watch: by chance, so that they spread
SILENCE = 90.0  # seconds without a byte that end a watch: the server sends bookmarks every 60
CONNECT = 5.0  # seconds
ANSWER = 60.0  # seconds between bytes of a list
SHORT = 1.0  # a watch that ends sooner counts as failed, whatever it said
ABSENT = 30.0  # seconds between looks for a kind that is not installed
FIRST_DELAY, LAST_DELAY = 0.2, 3.0  # seconds before another attempt
_MEANT_FOR = 320  # characters of an error that people get to see

log = structlog.get_logger()


@dataclass(frozen=True)
class Resource:
    """A kind and where its objects are; `only` is a field selector.

    An `optional` one may be not installed: then there are none, and it is looked for now and then.
    """

    kind: str
    path: str
    only: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Health:
    """`heard` is when the server last sent something (time.monotonic, 0 before the first time)."""

    connected: bool
    heard: float
    error: str


@dataclass(frozen=True)
class _Version:
    resource_version: str


@dataclass(frozen=True)
class Listed:
    """The whole list, in the shape the informer reads."""

    items: list[Object]
    metadata: _Version


class ListWatch:
    """Give its `request` to a SharedInformer as `list_func`.

    `listed` is called, in the informer's thread, once it has told of a whole list.
    """

    def __init__(
        self,
        client: Any,
        resource: Resource,
        listed: Callable[[], None],
        *,
        silence: float = SILENCE,
    ) -> None:
        self.resource = resource
        self._client = client
        self._listed = listed
        self._silence = silence
        self._trimmer = PartialDecoder(resource.kind)
        self._stopped = threading.Event()
        self._health = Health(False, 0.0, "not asked yet")
        self._began = 0.0
        self._stream: Stream | None = None
        self.version = ""  # where the last watch began
        self.lists = 0  # whole lists read: one, and one more for each 410 Gone
        self._short = 0  # attempts in a row that ended soon

    @property
    def health(self) -> Health:
        """How it is now."""
        return self._health

    def stop(self) -> None:
        """Wait for nothing any more: neither for a turn, nor for what a watch might still say.

        The informer's own `stop` misses a watch that is just being opened.
        """
        self._stopped.set()
        if self._stream is not None:
            self._stream.shutdown()

    def request(
        self,
        *,
        watch: bool = False,
        resource_version: str = "",
        **_: Any,
    ) -> Any:
        """A `Listed`, or the response of a watch. Raises what the client raises.

        The last line here is read by `kubernetes.watch.Watch`: without it no event's version is
        remembered, and a watch that goes on would tell the past again.

        :rtype: object
        """
        try:
            return self._watch(resource_version) if watch else self._list()
        except Exception as error:
            if self.resource.optional and isinstance(error, NotFoundException):
                return self._absent(error, watch)
            self._lost(error)
            raise

    def failed(self, error: object) -> None:
        """What ended a watch in the informer's own hands, 410 Gone among it."""
        is_absence = self.resource.optional and isinstance(error, NotFoundException)
        if isinstance(error, Exception) and not is_absence:
            self._lost(error)

    def _absent(self, error: Exception, watch: bool) -> Listed:
        """The kind is not installed. A watch from 0 will tell of all there is, once it is."""
        self._heard()
        if not watch:
            return Listed([], _Version("0"))
        self._stopped.wait(ABSENT * random.uniform(0.5, 1.0))
        raise error

    def _list(self) -> Listed:
        items: list[Object] = []
        rest = ""
        while True:
            query = [("limit", str(PAGE)), *([("continue", rest)] if rest else [])]
            response = self._get(query, ANSWER)
            try:
                page = self._trimmer.page(response.read())
            except msgspec.DecodeError as error:
                raise ValueError(f"{self.resource.path} answered no list: {error}") from error
            finally:
                response.release_conn()
            items += page.items
            rest = page.rest
            if not rest:
                self.lists += 1
                return Listed(items, _Version(page.resource_version))

    def _watch(self, resource_version: str) -> Stream:
        self._listed()  # the informer watches only once it has told of all that was listed
        self._pace()
        self.version = resource_version
        seconds = random.uniform(*WATCH_FOR)
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", f"{seconds:.0f}"),
        ]
        response = self._get(query, self._silence)
        self._stream = Stream(response, self._trimmer.event, self._heard, self._lost)
        if self._stopped.is_set():
            self._stream.shutdown()
        return self._stream

    def _get(self, query: list[tuple[str, str]], patience: float) -> Any:
        """An answer of status 200, unread."""
        if self.resource.only:
            query.append(("fieldSelector", self.resource.only))
        request = self._client.param_serialize(
            "GET",
            self.resource.path,
            query_params=query,
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*request, _request_timeout=(CONNECT, patience))
        if answer.status != 200:
            answer.read()
            raise ApiException.from_response(http_resp=answer, body=None, data=None)
        self._heard()
        return answer.response

    def _pace(self) -> None:
        """Wait before an attempt, longer the more of them ended soon."""
        soon = self._began and time.monotonic() - self._began < SHORT
        self._short = self._short + 1 if soon else 0
        if self._short:
            delay = min(FIRST_DELAY * 2.0 ** (self._short - 1), LAST_DELAY)
            self._stopped.wait(delay * random.uniform(0.5, 1.0))
        self._began = time.monotonic()

    def _heard(self) -> None:
        was = self._health
        self._health = Health(True, time.monotonic(), "")
        if not was.connected and was.heard:
            log.info("API server is back", kind=self.resource.kind)

    def _lost(self, error: Exception) -> None:
        was, reason = self._health, _reason(error)
        self._health = Health(False, was.heard, reason)
        if not self._stopped.is_set() and (was.connected or was.error != reason):
            note = "the last state stays in force"
            log.warning("API server lost", kind=self.resource.kind, error=reason, note=note)


class Stream:
    """A watch's response as `kubernetes.watch.Watch` reads it, every line of it trimmed."""

    def __init__(
        self,
        response: Any,
        trim: Callable[[bytes], bytes],
        heard: Callable[[], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self.status = response.status
        self._response = response
        self._trim = trim
        self._heard = heard
        self._lost = lost

    @property
    def connection(self) -> Any:
        """What `Watch.stop` shuts down to wake the reader."""
        return self._response.connection

    def stream(self, **options: Any) -> Iterator[bytes]:
        """Whole lines, as they come."""
        pending = bytearray()
        try:
            for segment in self._response.stream(**options):
                self._heard()
                *lines, rest = segment.split(b"\n")
                for line in lines:
                    pending += line
                    yield self._trim(bytes(pending)) + b"\n"
                    pending.clear()
                pending += rest
        except Exception as error:
            self._lost(error)
            raise

    def shutdown(self) -> None:
        """End it, whoever is reading; the reader closes it."""
        sock = getattr(self._response.connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def release_conn(self) -> None:
        """Give the connection back."""
        self._response.release_conn()


def _reason(error: Exception) -> str:
    """In one line, without headers and bodies."""
    if isinstance(error, ApiException):
        message = ""
        try:
            message = msgspec.json.decode(error.body or b"", type=_Status).message
        except (msgspec.DecodeError, TypeError):
            message = str(error.reason)
        return f"{error.status}: {message}"[:_MEANT_FOR]
    cause = getattr(error, "reason", None)
    return " ".join(f"{type(error).__name__}: {cause or error}".split())[:_MEANT_FOR]


class _Status(msgspec.Struct):
    message: str
