# SPDX-License-Identifier: Apache-2.0
"""Rows of certificates from Envoy's config dump, in which keys are redacted. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from cryptography import x509

from ztctl.commands.l7.proxy_config.envoy_tables import Json, listeners, section
from ztctl.output import Row, lookup

_STATES = {"dynamic_active_secrets": "ACTIVE", "dynamic_warming_secrets": "WARMING"}


def secrets(dump: Json) -> list[Json]:
    """The secrets, each with its state."""
    return [
        {**each, "state": state}
        for field, state in _STATES.items()
        for each in section(dump, "Secrets", field)
    ]


def secret_rows(dump: Json) -> Iterator[Row]:
    """One row for each certificate of each secret; one without dates if it is not loaded."""
    chains = _chains(dump)
    for entry in secrets(dump):
        name = str(entry.get("name", ""))
        pem = _pem(entry.get("secret") or {})
        row: Row = {
            "name": name,
            "type": "authorities" if name.endswith(".ca") else "certificate",
            "state": entry["state"],
            "chains": chains.get(name, []),
        }
        found = _certificates(pem)
        # a certificate is followed by its issuers, which are not presented for a host
        for each in found if name.endswith(".ca") else found[:1]:
            yield {**row, **_certificate(each)}
        if not found:
            yield row


def _pem(secret: Json) -> bytes:
    source = lookup(secret, "tls_certificate.certificate_chain")
    source = source or lookup(secret, "validation_context.trusted_ca")
    text = source.get("inline_bytes") if isinstance(source, dict) else None
    try:
        return base64.b64decode(str(text or ""))
    except ValueError:
        return b""


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem) if pem else []
    except (ValueError, x509.InvalidVersion):
        return []


def _certificate(certificate: x509.Certificate) -> Row:
    return {
        "hosts": _hosts(certificate),
        "serial": f"{certificate.serial_number:x}",
        "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
    }


def _hosts(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(each.value) for each in names]
    except (x509.ExtensionNotFound, ValueError):
        return [certificate.subject.rfc4514_string()]


def _chains(dump: Json) -> dict[str, list[str]]:
    """The filter chains that refer to a secret, by its name."""
    found: dict[str, list[str]] = {}
    for listener in listeners(dump):
        for chain in listener.get("filter_chains") or []:
            common = _common_tls_context(chain)
            references = list(common.get("tls_certificate_sds_secret_configs") or [])
            combined = common.get("combined_validation_context") or {}
            references.append(combined.get("validation_context_sds_secret_config"))
            for each in references:
                if isinstance(each, dict):
                    found.setdefault(str(each.get("name")), []).append(str(chain.get("name", "")))
    return found


def _common_tls_context(chain: Json) -> Json:
    """That of TLS, or of QUIC, which contains it."""
    config: Any = lookup(chain, "transport_socket.typed_config") or {}
    found = config.get("common_tls_context") or lookup(
        config, "downstream_tls_context.common_tls_context"
    )
    return found if isinstance(found, dict) else {}
