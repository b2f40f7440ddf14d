# SPDX-License-Identifier: Apache-2.0
"""The CA in its Secrets, and the roots in their ConfigMaps, kept in step with each other.

    Secret cacerts (an operator's) or ztunnel-ca (made here) --> roots published --settle--> signs

A CA whose root was published only now waits, so that no peer meets a certificate it can't verify;
until then the one before goes on signing. A broken Secret changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from ztunnel.controller import trust_bundle
from ztunnel.controller.kube_client import Cluster, RootsConflictError
from ztunnel.identity import ca
from ztunnel.identity.ca import Authority
from ztunnel.kube.constants import PLUGGED_CA, SELF_MADE_CA

log = structlog.get_logger()


class CaNotReadyError(Exception):
    """There is nothing to sign with yet; the text says why."""


@dataclass(frozen=True)
class Policy:
    """`keep`: seconds a root stays after its CA went; `settle`: before a new one's CA signs."""

    namespace: str
    trust_domain: str
    keep: float
    settle: float


class Authorities:
    """`current` may be called from any thread, the rest from one at a time."""

    def __init__(
        self, cluster: Cluster, policy: Policy, clock: Callable[[], float] = time.time
    ) -> None:
        self._cluster = cluster
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._authority: Authority | None = None
        self._problem = "the CA has not been read yet"
        self._trust = trust_bundle.Trust({}, {})
        self._new: dict[str, float] = {}  # root → when it was first published, if we did it
        self._foreign: set[str] = set()

    def current(self) -> Authority:
        """What signs now. Raises NoAuthorityError."""
        with self._lock:
            if self._authority is None:
                raise CaNotReadyError(self._problem)
            return self._authority

    @property
    def bundle(self) -> bytes:
        """The roots that every namespace should have; empty before the first `refresh`."""
        return self._trust.bundle

    def refresh(self) -> float | None:
        """Read the Secrets, publish the roots. Seconds until it must be called again, if so.

        Raises CaError, and what `Cluster` raises.
        """
        try:
            found = self._read()
        except ca.CaError as error:
            self._problem = str(error)
            raise
        published, retiring = self._cluster.published(self._policy.namespace)
        now = self._clock()
        self._trust = trust_bundle.plan(
            [authority.roots_pem for authority in found],
            published,
            retiring,
            now=now,
            keep=self._policy.keep,
        )
        if (self._trust.bundle, self._trust.retiring) != (published, retiring):
            self._publish_at_home(published)
        return self._next_look(now, self._adopt(found[0], now))

    def publish(self, namespace: str) -> None:
        """Bring a namespace's ConfigMap up to date. Raises what `Cluster` raises."""
        if not self.bundle or namespace == self._policy.namespace:
            return
        if not self._cluster.is_active(namespace):
            return
        try:
            self._cluster.publish(namespace, self.bundle, {}, force=False)
            self._foreign.discard(namespace)
        except RootsConflictError:
            if namespace not in self._foreign:
                log.warning(
                    "roots not published: another controller keeps others there",
                    namespace=namespace,
                    mend="give it the same CA, or delete the ConfigMap it does not need",
                )
            self._foreign.add(namespace)

    def _read(self) -> list[Authority]:
        """The CA that is to sign, then others whose certificates are still about."""
        plugged, own = (self._secret(name) for name in (PLUGGED_CA, SELF_MADE_CA))
        if plugged is None and own is None:
            own = self._make()
        return [authority for authority in (plugged, own) if authority is not None]

    def _secret(self, name: str) -> Authority | None:
        parts = self._cluster.secret(self._policy.namespace, name)
        if parts is None:
            return None
        return ca.assemble(parts, f"Secret {self._policy.namespace}/{name}")

    def _make(self) -> Authority:
        parts = ca.self_signed(self._policy.trust_domain, datetime.now(UTC))
        if self._cluster.create_secret(self._policy.namespace, SELF_MADE_CA, parts):
            log.info("CA made", secret=f"{self._policy.namespace}/{SELF_MADE_CA}")
        own = self._secret(SELF_MADE_CA)
        if own is None:
            raise CaNotReadyError(f"Secret {SELF_MADE_CA} was deleted as soon as it was made")
        return own

    def _publish_at_home(self, published: bytes) -> None:
        """Where the agents read them: ours, whoever wrote there."""
        before = trust_bundle.read_roots(published)
        self._cluster.publish(
            self._policy.namespace, self._trust.bundle, self._trust.retiring, force=True
        )
        if before:  # the first roots of a mesh need no time to spread: nobody has others
            now = self._clock()
            self._new.update({name: now for name in self._trust.roots if name not in before})
        log.info(
            "roots published",
            roots=sorted(name[:16] for name in self._trust.roots),
            retiring=sorted(name[:16] for name in self._trust.retiring),
        )

    def _adopt(self, wanted: Authority, now: float) -> float:
        """Let a CA sign once its roots have settled; seconds that are left until then."""
        since = max(self._new.get(name, 0.0) for name in trust_bundle.read_roots(wanted.roots_pem))
        left = max(0.0, since + self._policy.settle - now)
        with self._lock:
            if left:
                self._problem = (
                    f"the root of the CA was published only now; it signs in {left:.0f} s"
                )
            elif self._authority is None or self._authority.certificate != wanted.certificate:
                log.info("CA signs", serial=f"{wanted.certificate.serial_number:x}")
                self._authority = wanted
            else:
                self._authority = wanted
        return left

    def _next_look(self, now: float, settling: float) -> float | None:
        waits = [end - now for end in self._trust.retiring.values()]
        if settling:
            waits.append(settling)
        return max(0.0, min(waits)) if waits else None
