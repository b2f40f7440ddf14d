# SPDX-License-Identifier: Apache-2.0
"""Selects the issuer of workload certificates: the cluster's controller, or a local CA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ztunnel.agent.config import Options
from ztunnel.identity import ca
from ztunnel.identity.csr_signer import DiskSigner, Signer
from ztunnel.kube.sources.root_bundle import RootBundleSource
from ztunnel.kube.writers.csr_client import CsrSigner


@dataclass(frozen=True)
class CertificateIssuer:
    """`start` gets a callback for new root certificates (PEM), called in the running loop.

    `close` may block for a second.
    """

    signer: Signer
    start: Callable[[Callable[[bytes], None]], None]
    close: Callable[[], None]


def certificate_issuer_of(options: Options) -> CertificateIssuer:
    """The CA in `options.ca_dir`, or, without one, the controller behind the API server.

    Raises CaError, AccessError.
    """
    if options.ca_dir is not None:
        authority = ca.load_or_create(options.ca_dir, options.trust_domain)
        signer = DiskSigner(authority, ttl=options.certificate_ttl)
        return CertificateIssuer(signer, start=lambda _: None, close=lambda: None)
    if options.access is None:
        raise ca.CaError("no CA; hint: set --ca-dir, or use an API server with the controller")
    return _of_cluster(options)


def _of_cluster(options: Options) -> CertificateIssuer:
    assert options.access is not None
    api = options.access.client()
    roots = RootBundleSource(api, options.namespace)

    def close() -> None:
        roots.close()
        api.close()

    signer = CsrSigner(api, lambda: roots.bundle, options.certificate_ttl)
    return CertificateIssuer(signer, roots.start, close)
