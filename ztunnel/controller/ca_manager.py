# SPDX-License-Identifier: Apache-2.0
"""Reads the CA from its Secrets and publishes its roots in ConfigMaps.

    Secret cacerts (the operator's) or ztunnel-ca (created here)
        ──▶ roots published ──(root propagation delay)──▶ CA active

A CA whose root was published just now does not sign yet, so that no peer receives a certificate it
cannot verify; the previous CA signs until then. An invalid Secret is logged and changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from ztunnel.controller import trust_bundle
from ztunnel.controller.kube_client import KubeClient, RootsConflictError
from ztunnel.identity import ca
from ztunnel.identity.ca import Authority
from ztunnel.kube.constants import PLUGGED_CA, SELF_SIGNED_CA

log = structlog.get_logger()


class CaNotReadyError(Exception):
    """There is no CA to sign with yet."""


@dataclass(frozen=True)
class RotationConfig:
    """`retention_s`: how long a root stays trusted after its CA was removed.

    `propagation_delay_s`: between publishing the root of a new CA and signing with it.
    """

    namespace: str
    trust_domain: str
    retention_s: float
    propagation_delay_s: float


class CaManager:
    """`current` is safe from any thread; the other methods from one thread at a time."""

    def __init__(
        self, cluster: KubeClient, config: RotationConfig, clock: Callable[[], float] = time.time
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._authority: Authority | None = None
        self._not_ready = "the CA has not been read yet"
        self._trust = trust_bundle.TrustBundle({}, {})
        self._published_at: dict[str, float] = {}  # by root, of those that this process published
        self._conflicts: set[str] = set()  # namespaces where another controller owns the roots

    def current(self) -> Authority:
        """The active CA. Raises CaNotReadyError."""
        with self._lock:
            if self._authority is None:
                raise CaNotReadyError(self._not_ready)
            return self._authority

    @property
    def bundle(self) -> bytes:
        """The roots that every namespace should have (PEM); empty before the first `refresh`."""
        return self._trust.pem

    def refresh(self) -> float | None:
        """Read the Secrets, publish the roots. Returns the seconds until the next call is due.

        Raises CaError, CaNotReadyError, ApiError.
        """
        try:
            authorities = self._read_authorities()
        except ca.CaError as error:
            self._not_ready = str(error)
            raise
        published, expiring = self._cluster.published_roots(self._config.namespace)
        now = self._clock()
        self._trust = trust_bundle.next_bundle(
            [authority.roots_pem for authority in authorities],
            published,
            expiring,
            now=now,
            retention_s=self._config.retention_s,
        )
        if (self._trust.pem, self._trust.expiring) != (published, expiring):
            self._publish_in_own_namespace(published)
        return self._next_refresh(now, self._activate(authorities[0], now))

    def publish(self, namespace: str) -> None:
        """Update the ConfigMap of another namespace. Raises ApiError."""
        if not self.bundle or namespace == self._config.namespace:
            return
        if not self._cluster.is_active(namespace):
            return
        try:
            self._cluster.apply_roots(namespace, self.bundle, {}, force=False)
            self._conflicts.discard(namespace)
        except RootsConflictError:
            if namespace not in self._conflicts:
                log.warning(
                    "roots not published: another controller owns the ConfigMap",
                    namespace=namespace,
                    hint="configure both with the same CA, or delete the ConfigMap",
                )
            self._conflicts.add(namespace)

    def _read_authorities(self) -> list[Authority]:
        """The CA that should sign, then the other one, whose certificates may still be in use."""
        plugged, own = (self._read_secret(name) for name in (PLUGGED_CA, SELF_SIGNED_CA))
        if plugged is None and own is None:
            own = self._create_self_signed()
        return [authority for authority in (plugged, own) if authority is not None]

    def _read_secret(self, name: str) -> Authority | None:
        data = self._cluster.secret(self._config.namespace, name)
        if data is None:
            return None
        return ca.assemble(data, f"Secret {self._config.namespace}/{name}")

    def _create_self_signed(self) -> Authority:
        data = ca.self_signed(self._config.trust_domain, datetime.now(UTC))
        if self._cluster.create_secret(self._config.namespace, SELF_SIGNED_CA, data):
            secret = f"{self._config.namespace}/{SELF_SIGNED_CA}"
            log.info("self-signed CA created", secret=secret)
        own = self._read_secret(SELF_SIGNED_CA)
        if own is None:
            raise CaNotReadyError(f"Secret {SELF_SIGNED_CA} was deleted while it was created")
        return own

    def _publish_in_own_namespace(self, published: bytes) -> None:
        """Agents read the roots here: overwrite other field managers."""
        before = trust_bundle.parse_roots(published)
        self._cluster.apply_roots(
            self._config.namespace, self._trust.pem, self._trust.expiring, force=True
        )
        if before:  # the first roots of a mesh need no delay: no peer has others
            now = self._clock()
            self._published_at.update(
                {name: now for name in self._trust.roots if name not in before}
            )
        log.info(
            "roots published",
            roots=sorted(name[:16] for name in self._trust.roots),
            expiring=sorted(name[:16] for name in self._trust.expiring),
        )

    def _activate(self, wanted: Authority, now: float) -> float:
        """Sign with a CA once its roots have propagated; returns the seconds until then."""
        roots = trust_bundle.parse_roots(wanted.roots_pem)
        published_at = max(self._published_at.get(name, 0.0) for name in roots)
        left = max(0.0, published_at + self._config.propagation_delay_s - now)
        with self._lock:
            if left:
                self._not_ready = f"the CA's root was just published; it signs in {left:.0f} s"
                return left
            if self._authority is None or self._authority.certificate != wanted.certificate:
                log.info("CA active", serial=f"{wanted.certificate.serial_number:x}")
            self._authority = wanted
        return left

    def _next_refresh(self, now: float, until_active: float) -> float | None:
        waits = [end - now for end in self._trust.expiring.values()]
        if until_active:
            waits.append(until_active)
        return max(0.0, min(waits)) if waits else None
