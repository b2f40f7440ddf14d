# SPDX-License-Identifier: Apache-2.0
"""Reconciles CertificateSigningRequests with our signer name.

    new ──check──▶ Approved ──sign──▶ certificate issued
         └───────▶ Denied
    approved by someone else, but not allowed by our policy ──▶ Failed

The policy is evaluated before every signature, also of requests that someone else approved, on the
pods and service accounts of that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from ztunnel.controller.csr_policy import (
    Approved,
    CsrPolicyConfig,
    Denied,
    Reason,
    check_claim,
    check_request,
)
from ztunnel.controller.kube_client import Condition, KubeClient, condition_types, csr_facts
from ztunnel.identity import csr_signer
from ztunnel.identity.ca import Authority
from ztunnel.kube.constants import SIGNER_NAME
from ztunnel.kube.objects.fields import Object

log = structlog.get_logger()


class CsrController:
    """Thread-safe."""

    def __init__(
        self,
        cluster: KubeClient,
        config: CsrPolicyConfig,
        authority: Callable[[], Authority],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`authority` raises CaNotReadyError while there is no CA to sign with."""
        self._cluster = cluster
        self._config = config
        self._authority = authority
        self._clock = clock

    def reconcile(self, name: str) -> None:
        """Deny or sign a request. On any exception the caller retries."""
        csr = self._cluster.csr(name)
        if csr is None or csr["spec"].get("signerName") != SIGNER_NAME or is_finished(csr):
            return
        decision = self._decide(csr)
        if isinstance(decision, Denied):
            self._deny(csr, decision)
        else:
            self._sign(csr, decision)

    def _decide(self, csr: Object) -> Approved | Denied:
        claim = check_request(csr_facts(csr), self._config)
        if isinstance(claim, Denied):
            return claim
        exists = self._cluster.account_exists(claim)
        return check_claim(claim, self._cluster.pods(claim), account_exists=exists)

    def _deny(self, csr: Object, denied: Denied) -> None:
        name, reason = csr["metadata"]["name"], denied.reason.value
        if Condition.APPROVED in condition_types(csr):  # the API server rejects Denied then
            self._cluster.set_failed(csr, reason, denied.message)
        else:
            self._cluster.set_approval(csr, Condition.DENIED, reason, denied.message)
        log.warning(
            "certificate request denied",
            request=name,
            reason=reason,
            detail=denied.message,
            user=csr["spec"].get("username", ""),
        )

    def _sign(self, csr: Object, approved: Approved) -> None:
        authority = self._authority()  # raises before the request is approved
        if Condition.APPROVED not in condition_types(csr):
            reason = Reason.APPROVED.value
            csr = self._cluster.set_approval(csr, Condition.APPROVED, reason, approved.message)
        issued = csr_signer.sign(
            authority,
            csr_facts(csr).csr_pem,
            approved.identity,
            now=self._clock(),
            ttl=approved.ttl,
        )
        self._cluster.set_certificate(csr, issued.chain_pem)
        log.info(
            "certificate signed",
            request=csr["metadata"]["name"],
            identity=approved.identity,
            serial=f"{issued.serial:x}",
            proof=approved.message,
        )


def is_finished(csr: Object) -> bool:
    """Whether the request has its final status."""
    if (csr.get("status") or {}).get("certificate"):
        return True
    return bool(condition_types(csr) & {Condition.DENIED, Condition.FAILED})
