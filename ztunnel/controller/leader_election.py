# SPDX-License-Identifier: Apache-2.0
"""Leader election by a Lease. The algorithm is the kubernetes package's.

Two leaders at once would do no harm: the API server accepts one answer to a request, and one CA
Secret. The Lease avoids duplicate work.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from kubernetes.leaderelection.electionconfig import Config
from kubernetes.leaderelection.leaderelection import LeaderElection
from kubernetes.leaderelection.leaderelectionrecord import LeaderElectionRecord

from ztunnel.kube.client.request import ApiError, send
from ztunnel.kube.objects.fields import Object

logging.getLogger("leaderelection").setLevel(logging.WARNING)  # it logs every renewal

log = structlog.get_logger()


@dataclass(frozen=True)
class LeaseTimings:
    """The defaults are those of Kubernetes' own controllers."""

    duration_s: int = 15
    renew_deadline_s: int = 10
    retry_period_s: int = 2

    @classmethod
    def of(cls, duration_s: int) -> LeaseTimings:
        """Scale to a duration of at least 3 s. Stopping takes up to one retry period."""
        return cls(duration_s, max(2, duration_s * 2 // 3), 2 if duration_s >= 15 else 1)


class LeaderElector:
    """Calls `lead(lost)` while this process is the leader, until `stop` is called."""

    def __init__(
        self, client: Any, namespace: str, name: str, identity: str, timings: LeaseTimings
    ) -> None:
        """`identity` is unique among the candidates: the pod's name."""
        self._timings = timings
        self._lock = _LeaseLock(client, namespace, name, identity, timings.retry_period_s)
        self._lost = threading.Event()

    def run(self, lead: Callable[[threading.Event], None]) -> None:
        """`lead` runs in a thread of its own and must return soon after its event is set."""
        while not self._lock.is_closed:
            self._run_term(lead)
        self._lock.release()

    def stop(self) -> None:
        """Stop, and release the lease so that the next leader need not wait for it to expire."""
        self._lock.is_closed = True
        self._lost.set()

    @property
    def seconds_since_response(self) -> float:
        """Since the API server last answered."""
        return time.monotonic() - self._lock.last_response

    def _run_term(self, lead: Callable[[threading.Event], None]) -> None:
        """Wait for the lease, lead, and lose it."""
        lost, running = threading.Event(), threading.Lock()
        self._lost = lost

        def run_leader() -> None:
            with running:
                if not lost.is_set():
                    name, identity = self._lock.name, self._lock.identity
                    log.info("leadership acquired", lease=name, identity=identity)
                    try:
                        lead(lost)
                    finally:
                        log.info("leadership lost", lease=name)

        timings = self._timings
        election = LeaderElection(
            Config(
                self._lock,
                timings.duration_s,
                timings.renew_deadline_s,
                timings.retry_period_s,
                run_leader,
                lost.set,
            )
        )
        try:
            election.run()
        except _ClosedError:
            pass
        finally:
            lost.set()
            with running:  # until `lead` has returned
                pass


class _ClosedError(Exception):
    """Leaves the package's loops, which have no other exit."""


@dataclass(frozen=True)
class _Failure:
    """What the package expects instead of a record if the lease could not be read."""

    body: str
    reason: str


class _LeaseLock:
    """The package's lock interface, on our requests. Requests take `timeout_s` at most."""

    def __init__(
        self, client: Any, namespace: str, name: str, identity: str, timeout_s: float
    ) -> None:
        self.name, self.namespace, self.identity = name, namespace, identity
        self.is_closed = False
        self.last_response = -math.inf  # time.monotonic
        self._client = client
        self._timeout_s = timeout_s
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._lease: Object = {}

    def get(self, name: str, namespace: str) -> tuple[bool, LeaderElectionRecord | _Failure]:
        """The current record; False and the reason if it cannot be read."""
        self._raise_if_closed()
        try:
            self._lease = self._send("GET", f"/{self.name}")
        except ApiError as error:
            return False, _Failure(json.dumps({"code": error.status}), str(error))
        spec = self._lease.get("spec") or {}
        duration_s = spec.get("leaseDurationSeconds")
        return True, LeaderElectionRecord(
            spec.get("holderIdentity") or None,
            str(duration_s) if duration_s else None,
            spec.get("acquireTime"),
            spec.get("renewTime"),
        )

    def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """Whether this process created the lease, and so holds it."""
        self._raise_if_closed()
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name},
            "spec": _spec_of(election_record),
        }
        return self._write("POST", "", lease)

    def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Whether this process holds the lease. Fails if another wrote it since `get`."""
        self._raise_if_closed()
        spec = {**(self._lease.get("spec") or {}), **_spec_of(updated_record)}
        return self._write("PUT", f"/{self.name}", {**self._lease, "spec": spec})

    def release(self) -> None:
        """Clear the holder if it is this process. On failure the lease expires by itself."""
        try:
            lease = self._send("GET", f"/{self.name}")
            if lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"]["holderIdentity"] = None
                self._send("PUT", f"/{self.name}", lease)
        except ApiError as error:
            log.warning("lease not released", error=str(error), note="it expires")

    def _raise_if_closed(self) -> None:
        if self.is_closed:
            raise _ClosedError

    def _write(self, method: str, suffix: str, lease: Object) -> bool:
        try:
            self._lease = self._send(method, suffix, lease)
        except ApiError as error:
            if not error.status:  # no response; a conflict means that another leads
                log.warning("lease not renewed", error=str(error))
            return False
        return True

    def _send(self, method: str, suffix: str, body: Object | None = None) -> Object:
        path = self._collection + suffix
        try:
            lease: Object = send(self._client, method, path, body=body, timeout_s=self._timeout_s)
        except ApiError as error:
            if error.status:
                self.last_response = time.monotonic()
            raise
        self.last_response = time.monotonic()
        return lease


def _spec_of(record: LeaderElectionRecord) -> Object:
    return {
        "holderIdentity": record.holder_identity,
        "leaseDurationSeconds": int(record.lease_duration),
        "acquireTime": _micro_time(record.acquire_time),
        "renewTime": _micro_time(record.renew_time),
    }


def _micro_time(text: str) -> str:
    """Kubernetes' MicroTime. The package writes local time without a zone."""
    return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="microseconds")
