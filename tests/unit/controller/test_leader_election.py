# SPDX-License-Identifier: Apache-2.0
"""Leader election on a Lease in memory."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.support.waiting import wait_until
from ztunnel.controller.leader_election import LeaderElector, LeaseTimings

TIMINGS = LeaseTimings(duration_s=3, renew_deadline_s=2, retry_period_s=1)


@dataclass
class Response:
    status: int
    body: bytes
    reason: str = ""

    @property
    def response(self) -> Response:
        return self

    def read(self) -> bytes:
        return self.body

    def release_conn(self) -> None: ...


@dataclass
class LeaseServer:
    """An API server that has at most one object, with optimistic concurrency."""

    lease: dict[str, Any] | None = None
    version: int = 0
    is_down: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def param_serialize(self, method: str, path: str, **options: Any) -> tuple[str, Any]:
        return method, options["body"]

    def call_api(self, method: str, body: Any, *, _request_timeout: object) -> Response:
        with self.lock:
            if self.is_down:
                raise ConnectionRefusedError
            if method == "GET":
                return self._reply() if self.lease else self._status(404)
            if method == "POST" and self.lease:
                return self._status(409)
            if method == "PUT" and body["metadata"]["resourceVersion"] != str(self.version):
                return self._status(409)
            self.version += 1
            metadata = {**body["metadata"], "resourceVersion": str(self.version)}
            self.lease = {**body, "metadata": metadata}
            return self._reply()

    @property
    def holder(self) -> str | None:
        return self.lease["spec"]["holderIdentity"] if self.lease else None

    def _reply(self) -> Response:
        return Response(200, json.dumps(self.lease).encode())

    def _status(self, status: int) -> Response:
        return Response(status, json.dumps({"message": "message"}).encode())


class Candidate:
    """A process that takes part in the election."""

    def __init__(self, server: LeaseServer, identity: str) -> None:
        self.terms = 0
        self.is_leading = False
        self.elector = LeaderElector(server, "system", "lease", identity, TIMINGS)
        self._thread = threading.Thread(target=self.elector.run, args=(self._lead,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.elector.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _lead(self, lost: threading.Event) -> None:
        self.terms += 1
        self.is_leading = True
        lost.wait()
        self.is_leading = False


def test_stopped_leader_releases_lease_to_next_candidate() -> None:
    server = LeaseServer()
    one = Candidate(server, "one")
    wait_until(lambda: one.is_leading)
    assert server.lease is not None
    assert datetime.fromisoformat(server.lease["spec"]["renewTime"]).tzinfo == UTC
    two = Candidate(server, "two")
    one.stop()
    assert not one.is_leading
    wait_until(lambda: two.is_leading)
    assert server.holder == "two"
    two.stop()
    assert server.holder is None


def test_leader_stops_leading_while_server_is_down() -> None:
    server = LeaseServer()
    one = Candidate(server, "one")
    wait_until(lambda: one.is_leading)
    server.is_down = True
    wait_until(lambda: not one.is_leading)
    assert one.elector.seconds_since_response > 1
    server.is_down = False
    wait_until(lambda: one.is_leading)
    assert one.terms == 2
    one.stop()
