# SPDX-License-Identifier: Apache-2.0
"""The node's certificates: requested when a pod needs one, renewed, blocked and removed.

One asyncio task per identity follows its RenewalSchedule. Keys are generated here, stay in memory,
and never appear in a repr, a log or the admin API.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from ztunnel.identity.ca import chain_is_trusted
from ztunnel.identity.csr import new_request
from ztunnel.identity.csr_signer import Signer
from ztunnel.identity.renewal_schedule import RenewalSchedule

MAX_SLEEP_S = 30.0  # bounds the delay after a change of the wall clock
BLOCKED_POLL_INTERVAL_S = 0.25  # between checks whether a due certificate is still blocked
SIGN_TIMEOUT_S = 30.0

BLOCKED = "blocked"

log = structlog.get_logger()


@dataclass(frozen=True)
class KeyPair:
    """A workload certificate with its key and the roots to trust."""

    identity: str
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    roots_pem: bytes
    serial: int
    not_before: float
    not_after: float


@dataclass(frozen=True)
class CertificateStatus:
    """The public status of a certificate. Times are Unix seconds; 0 and "" without one."""

    identity: str
    state: str  # renewal_schedule.Phase, or BLOCKED
    serial: str
    not_before: float
    not_after: float
    renewals: int
    last_error: str


class CertificateStore:
    """The certificates of all identities on this node. Not thread-safe: use from one event loop."""

    def __init__(
        self,
        signer: Signer,
        on_certificate: Callable[[KeyPair], None],
        *,
        blocked_reason: Callable[[str], str] = lambda _: "",
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),
    ) -> None:
        """Call `on_certificate` with each new certificate, also after a renewal.

        `blocked_reason` returns why no certificate may be requested for an identity now; empty if
        one may. An existing certificate stays in use until it expires.
        """
        self._signer = signer
        self._on_certificate = on_certificate
        self._blocked_reason = blocked_reason
        self._clock = clock
        self._jitter = jitter
        self._entries: dict[str, _Entry] = {}

    def ensure(self, identity: str) -> None:
        """Obtain and renew a certificate for `identity`. Idempotent."""
        if identity in self._entries:
            return
        entry = _Entry(identity, RenewalSchedule(attempt_at=self._clock()))
        self._entries[identity] = entry
        entry.task = asyncio.create_task(self._renew_loop(entry), name=f"certificate {identity}")

    def remove(self, identity: str) -> None:
        """Remove the certificate and the key of an identity that no pod on this node uses."""
        entry = self._entries.pop(identity, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()

    def identities(self) -> set[str]:
        """Return the identities that `ensure` was called for."""
        return set(self._entries)

    def current(self) -> list[KeyPair]:
        """Return the valid certificates, ordered by identity."""
        now = self._clock()
        pairs = [entry.pair for _, entry in sorted(self._entries.items())]
        return [pair for pair in pairs if pair is not None and now < pair.not_after]

    def set_roots(self, roots_pem: bytes) -> None:
        """Replace the trusted roots and report every certificate with them.

        A certificate that does not chain to a root is renewed at once: peers reject it.
        """
        for _, entry in sorted(self._entries.items()):
            if entry.pair is None or entry.pair.roots_pem == roots_pem:
                continue
            entry.pair = replace(entry.pair, roots_pem=roots_pem)
            self._on_certificate(entry.pair)
            if not chain_is_trusted(roots_pem, entry.pair.chain_pem):
                entry.schedule = replace(entry.schedule, attempt_at=self._clock())
                entry.awake.set()

    def statuses(self) -> list[CertificateStatus]:
        """Return one status per identity, for the admin API."""
        now = self._clock()
        return [
            entry.status(now, self._blocked_reason(identity))
            for identity, entry in sorted(self._entries.items())
        ]

    async def close(self) -> None:
        """Cancel all tasks."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        self._entries.clear()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _renew_loop(self, entry: _Entry) -> None:
        while True:
            is_blocked = self._update_blocked(entry)
            wait = entry.schedule.due_in(self._clock())
            if is_blocked:
                wait = max(wait, BLOCKED_POLL_INTERVAL_S)
            if wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, MAX_SLEEP_S)):
                        await entry.awake.wait()
                entry.awake.clear()
                continue
            try:
                await self._renew(entry)
            except Exception as error:
                self._record_failure(entry, error)

    def _update_blocked(self, entry: _Entry) -> bool:
        """Return whether requests for the identity are blocked; log when that changes."""
        reason = self._blocked_reason(entry.identity)
        if reason != entry.blocked_reason:
            entry.blocked_reason = reason
            if reason:
                valid = entry.schedule.has_valid(self._clock())
                log.warning(
                    "certificate request blocked",
                    identity=entry.identity,
                    reason=reason,
                    valid=valid,
                )
            else:
                log.info("certificate request unblocked", identity=entry.identity)
                entry.schedule = entry.schedule.reset_backoff(self._clock())
        return bool(reason)

    async def _renew(self, entry: _Entry) -> None:
        request = new_request(entry.identity)
        async with asyncio.timeout(SIGN_TIMEOUT_S):  # wait_for can suppress a cancellation
            issued = await self._signer.sign(entry.identity, request.csr_pem)
        if issued.not_after <= self._clock():
            raise ValueError("the issued certificate has already expired; hint: compare the clocks")
        entry.schedule = entry.schedule.issued(self._clock(), issued.not_after, self._jitter())
        entry.error = ""
        entry.pair = KeyPair(
            identity=entry.identity,
            chain_pem=issued.chain_pem,
            key_pem=request.key_pem,
            roots_pem=issued.roots_pem,
            serial=issued.serial,
            not_before=issued.not_before,
            not_after=issued.not_after,
        )
        log.info("certificate issued", identity=entry.identity, serial=f"{issued.serial:x}")
        self._on_certificate(entry.pair)

    def _record_failure(self, entry: _Entry, error: Exception) -> None:
        now = self._clock()
        entry.schedule = entry.schedule.failed(now, self._jitter())
        entry.error = str(error) or type(error).__name__
        log.warning(
            "certificate request failed",
            identity=entry.identity,
            error=entry.error,
            valid=entry.schedule.has_valid(now),
            retry_in=round(entry.schedule.due_in(now), 1),
        )


@dataclass
class _Entry:
    identity: str
    schedule: RenewalSchedule
    pair: KeyPair | None = None
    error: str = ""
    blocked_reason: str = ""  # as logged last
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def status(self, now: float, blocked_reason: str) -> CertificateStatus:
        pair = self.pair
        return CertificateStatus(
            identity=self.identity,
            state=BLOCKED if blocked_reason else self.schedule.phase(now).value,
            serial=f"{pair.serial:x}" if pair else "",
            not_before=pair.not_before if pair else 0.0,
            not_after=pair.not_after if pair else 0.0,
            renewals=max(0, self.schedule.issued_count - 1),
            last_error=blocked_reason or self.error,
        )
