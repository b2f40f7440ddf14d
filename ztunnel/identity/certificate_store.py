# SPDX-License-Identifier: Apache-2.0
"""The node's certificates: obtained when a pod needs one, renewed, withheld, forgotten.

One asyncio task per identity follows `rotation`; keys are made here, live in memory only, and are
in no repr, log or listing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from ztunnel.identity.ca import vouches
from ztunnel.identity.csr import new_request
from ztunnel.identity.csr_signer import Signer
from ztunnel.identity.renewal_schedule import Rotation

LONGEST_SLEEP = 30.0  # seconds: notices soon when the wall clock was set
WITHHELD_SLEEP = 0.25  # seconds between looks whether a certificate that is due may be asked for
SIGN_TIMEOUT = 30.0

WITHHELD = "withheld"

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
class Status:
    """What people may see of a certificate. Times are Unix seconds; 0 and "" without one."""

    identity: str
    state: str  # rotation.Phase, or WITHHELD
    serial: str
    not_before: float
    not_after: float
    renewals: int
    last_error: str


class Store:
    """All identities of this node. Use from one event loop only."""

    def __init__(
        self,
        signer: Signer,
        on_certificate: Callable[[KeyPair], None],
        *,
        withheld: Callable[[str], str] = lambda _: "",
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),
    ) -> None:
        """`on_certificate` is called with each new certificate, the first and the renewals.

        `withheld` says why none must be asked for an identity now, empty when one may. What is
        there stays in use until it expires.
        """
        self._signer = signer
        self._on_certificate = on_certificate
        self._withheld = withheld
        self._clock = clock
        self._jitter = jitter
        self._entries: dict[str, _Entry] = {}

    def ensure(self, identity: str) -> None:
        """From now on have a valid certificate for `identity`. Idempotent."""
        if identity in self._entries:
            return
        entry = _Entry(identity, Rotation(attempt_at=self._clock()))
        self._entries[identity] = entry
        entry.task = asyncio.create_task(self._keep(entry), name=f"certificate {identity}")

    def forget(self, identity: str) -> None:
        """No pod here needs it any more; its key is dropped."""
        entry = self._entries.pop(identity, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()

    def identities(self) -> set[str]:
        """What `ensure` was called for."""
        return set(self._entries)

    def current(self) -> list[KeyPair]:
        """The certificates that are valid now, by identity."""
        now = self._clock()
        pairs = [entry.pair for _, entry in sorted(self._entries.items())]
        return [pair for pair in pairs if pair is not None and now < pair.not_after]

    def trust(self, roots_pem: bytes) -> None:
        """The roots are others: each certificate is told anew with them.

        One that none of them vouches for is renewed at once, as peers will not take it.
        """
        for _, entry in sorted(self._entries.items()):
            if entry.pair is None or entry.pair.roots_pem == roots_pem:
                continue
            entry.pair = replace(entry.pair, roots_pem=roots_pem)
            self._on_certificate(entry.pair)
            if not vouches(roots_pem, entry.pair.chain_pem):
                entry.rotation = replace(entry.rotation, attempt_at=self._clock())
                entry.awake.set()

    def statuses(self) -> list[Status]:
        """One line per identity, for the admin API."""
        now = self._clock()
        return [
            entry.status(now, self._withheld(identity))
            for identity, entry in sorted(self._entries.items())
        ]

    async def close(self) -> None:
        """End all tasks."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        self._entries.clear()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _keep(self, entry: _Entry) -> None:
        while True:
            is_withheld = self._look(entry)
            wait = entry.rotation.due_in(self._clock())
            if is_withheld:
                wait = max(wait, WITHHELD_SLEEP)
            if wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, LONGEST_SLEEP)):
                        await entry.awake.wait()
                entry.awake.clear()
                continue
            try:
                await self._renew(entry)
            except Exception as error:
                self._failed(entry, error)

    def _look(self, entry: _Entry) -> bool:
        """Whether an identity's certificate is withheld; tells when that is new or over."""
        reason = self._withheld(entry.identity)
        if reason != entry.withheld:
            entry.withheld = reason
            if reason:
                valid = entry.rotation.has_valid(self._clock())
                log.warning(
                    "certificate withheld", identity=entry.identity, reason=reason, valid=valid
                )
            else:
                log.info("certificate no longer withheld", identity=entry.identity)
                entry.rotation = entry.rotation.forgiven(self._clock())
        return bool(reason)

    async def _renew(self, entry: _Entry) -> None:
        request = new_request(entry.identity)
        async with asyncio.timeout(SIGN_TIMEOUT):  # wait_for may swallow that we are cancelled
            issued = await self._signer.sign(entry.identity, request.csr_pem)
        if issued.not_after <= self._clock():
            raise ValueError("the signer's certificate has expired already; compare the clocks")
        entry.rotation = entry.rotation.issued(self._clock(), issued.not_after, self._jitter())
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

    def _failed(self, entry: _Entry, error: Exception) -> None:
        now = self._clock()
        entry.rotation = entry.rotation.failed(now, self._jitter())
        entry.error = str(error) or type(error).__name__
        log.warning(
            "certificate failed",
            identity=entry.identity,
            error=entry.error,
            valid=entry.rotation.has_valid(now),
            retry_in=round(entry.rotation.due_in(now), 1),
        )


@dataclass
class _Entry:
    identity: str
    rotation: Rotation
    pair: KeyPair | None = None
    error: str = ""
    withheld: str = ""  # why, as was told last
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def status(self, now: float, withheld: str) -> Status:
        pair = self.pair
        return Status(
            identity=self.identity,
            state=WITHHELD if withheld else self.rotation.phase(now).value,
            serial=f"{pair.serial:x}" if pair else "",
            not_before=pair.not_before if pair else 0.0,
            not_after=pair.not_after if pair else 0.0,
            renewals=max(0, self.rotation.issued_count - 1),
            last_error=withheld or self.error,
        )
