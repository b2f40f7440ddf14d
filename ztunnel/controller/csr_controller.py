# SPDX-License-Identifier: Apache-2.0
"""Takes one request from as it is to denied or signed.

    new --decide--> Approved --sign--> certificate
        \\--> Denied
    approved by somebody else, but not by our rules --> Failed

Whoever approved it, the rules are asked before anything is signed, with pods and accounts as they
are then.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from ztunnel.controller.csr_policy import Approved, Denied, Reason, Terms, claim, prove
from ztunnel.controller.kube_client import Cluster, Csr, asked, conditions
from ztunnel.identity import csr_signer
from ztunnel.identity.ca import Authority
from ztunnel.kube.constants import SIGNER_NAME

log = structlog.get_logger()


class Requests:
    """All requests with our signer name. Thread-safe."""

    def __init__(
        self,
        cluster: Cluster,
        terms: Terms,
        authority: Callable[[], Authority],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`authority` raises when there is no CA to sign with yet."""
        self._cluster = cluster
        self._terms = terms
        self._authority = authority
        self._clock = clock

    def handle(self, name: str) -> None:
        """Bring a request to its end. Any exception means: try again."""
        csr = self._cluster.csr(name)
        if csr is None or csr.spec.signer_name != SIGNER_NAME or is_over(csr):
            return
        decided = self._decide(csr)
        if isinstance(decided, Denied):
            self._refuse(csr, decided)
        else:
            self._sign(csr, decided)

    def _decide(self, csr: Csr) -> Approved | Denied:
        wanted = claim(asked(csr), self._terms)
        if isinstance(wanted, Denied):
            return wanted
        exists = self._cluster.account_exists(wanted)
        return prove(wanted, self._cluster.pods(wanted), account_exists=exists)

    def _refuse(self, csr: Csr, denied: Denied) -> None:
        if "Approved" in conditions(csr):  # the API server allows no Denied any more
            self._cluster.fail(csr, denied.reason.value, denied.message)
        else:
            self._cluster.judge(csr, "Denied", denied.reason.value, denied.message)
        log.warning(
            "request denied",
            request=csr.metadata.name,
            reason=denied.reason.value,
            detail=denied.message,
            user=csr.spec.username,
        )

    def _sign(self, csr: Csr, approved: Approved) -> None:
        authority = self._authority()  # first: what can't be signed need not be approved yet
        if "Approved" not in conditions(csr):
            csr = self._cluster.judge(csr, "Approved", Reason.APPROVED.value, approved.message)
        issued = csr_signer.sign(
            authority,
            asked(csr).csr_pem,
            approved.identity,
            now=self._clock(),
            ttl=approved.ttl,
        )
        self._cluster.deliver(csr, issued.chain_pem)
        log.info(
            "certificate signed",
            request=csr.metadata.name,
            identity=approved.identity,
            serial=f"{issued.serial:x}",
            proof=approved.message,
        )


def is_over(csr: Csr) -> bool:
    """Whether it is answered for good."""
    if csr.status and csr.status.certificate:
        return True
    return bool(conditions(csr) & {"Denied", "Failed"})
