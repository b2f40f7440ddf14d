# SPDX-License-Identifier: Apache-2.0
"""One signer of several leads, by a Lease. The algorithm is the kubernetes client's.

Two that lead at once would do no harm, for the API server lets only one answer a request, and one
create the CA; the Lease spares the work.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection.electionconfig import Config
from kubernetes.leaderelection.leaderelection import LeaderElection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from urllib3.exceptions import HTTPError

logging.getLogger("leaderelection").setLevel(logging.WARNING)  # it tells of every renewal

log = structlog.get_logger()


@dataclass(frozen=True)
class LeaseTimings:
    """In seconds; the defaults are those of Kubernetes' own controllers."""

    lease: int = 15
    renew: int = 10
    retry: int = 2

    @classmethod
    def of(cls, lease: int) -> LeaseTimings:
        """The same for another length, 3 s at least. A retry is also how long an end may take."""
        return cls(lease, max(2, lease * 2 // 3), 2 if lease >= 15 else 1)


class Leadership:
    """Runs `lead(lost)` whenever this process leads, until `lost` is set or `stop` is called."""

    def __init__(
        self, api: Any, namespace: str, lease: str, identity: str, pace: LeaseTimings | None = None
    ) -> None:
        """`identity` tells this process from the others; a pod's name does."""
        self._pace = pace or LeaseTimings()
        self._lock = _Lock(api, lease, namespace, identity, self._pace.retry)
        self._lost = threading.Event()

    def run(self, lead: Callable[[threading.Event], None]) -> None:
        """Until `stop`. `lead` must return soon after its event is set."""
        while not self._lock.closed:
            self._term(lead)
        self._lock.release()

    def stop(self) -> None:
        """End, and let go of the lease, so that the next need not wait for it to lapse."""
        self._lock.closed = True
        self._lost.set()

    @property
    def silence(self) -> float:
        """Seconds since the API server last answered."""
        return time.monotonic() - self._lock.heard

    def _term(self, lead: Callable[[threading.Event], None]) -> None:
        """From waiting for the lease to losing it."""
        lost, running = threading.Event(), threading.Lock()
        self._lost = lost

        def started() -> None:
            with running:
                if not lost.is_set():
                    log.info("leads", lease=self._lock.name, identity=self._lock.identity)
                    lead(lost)

        pace = self._pace
        election = LeaderElection(
            Config(self._lock, pace.lease, pace.renew, pace.retry, started, lost.set)
        )
        try:
            election.run()
        except _Closed:
            pass
        finally:
            lost.set()
            with running:  # `lead` has returned
                log.info("leads no more", lease=self._lock.name)


class _Closed(Exception):  # noqa: N818  a way out, not a defect
    """Leaves the election's loops, which know no other end."""


class _Lock:
    """The client's LeaseLock with our connection, calls bounded in time, and an end."""

    def __init__(self, api: Any, name: str, namespace: str, identity: str, timeout: float) -> None:
        self.name, self.namespace, self.identity = name, namespace, identity
        self._lock = _lease_lock(name, namespace, identity)
        self._api = self._lock.api_instance = _Bounded(client.CoordinationV1Api(api), timeout)
        self.closed = False
        self.heard = -math.inf  # by time.monotonic

    def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """The lease's record; what can't be reached counts as an answer that is none."""
        if self.closed:
            raise _Closed
        try:
            found: tuple[bool, Any] = self._lock.get(name, namespace)
        except HTTPError as error:
            return False, ApiException(status=0, reason=str(error))
        self.heard = time.monotonic()
        return found

    def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Whether the lease is ours now."""
        return self._done(lambda: self._lock.create(name, namespace, election_record))

    def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Whether the lease is ours still."""
        return self._done(lambda: self._lock.update(name, namespace, updated_record))

    def release(self) -> None:
        """Nobody holds it any more, if we did. As well as can be: else it lapses."""
        try:
            lease = self._api.read_namespaced_lease(self.name, self.namespace)
            if lease.spec.holder_identity == self.identity:
                lease.spec.holder_identity = None
                self._api.replace_namespaced_lease(self.name, self.namespace, lease)
        except (ApiException, HTTPError) as error:
            log.warning("lease not released, it will lapse", error=str(error))

    def _done(self, write: Callable[[], bool]) -> bool:
        if self.closed:
            raise _Closed
        try:
            return bool(write())
        except HTTPError as error:
            log.warning("lease not renewed", error=str(error))
            return False


def _lease_lock(name: str, namespace: str, identity: str) -> Any:  # it has no types
    return LeaseLock(name, namespace, identity)


class _Bounded:
    """An API whose calls answer in time or fail."""

    def __init__(self, api: Any, timeout: float) -> None:
        self._api = api
        self._timeout = timeout

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(getattr(self._api, name), _request_timeout=self._timeout)
