# SPDX-License-Identifier: Apache-2.0
"""The authorities of a BackendTLSPolicy: from its caCertificateRefs and ConfigMaps to PEM.

The controller runs this, because nodes do not read ConfigMaps. The result is an annotation of the
policy: certificates only, because readers of the policy may not be allowed to read the ConfigMap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ztunnel.kube.objects.l7_kinds import MAX_CA_CERTIFICATES_CHARS
from ztunnel.l7.objects import L7Object

CA_KEY = "ca.crt"  # of the ConfigMap; Gateway API
MAX_REFS = 8  # Gateway API's limit
INVALID_REF, INVALID_KIND = "InvalidCACertificateRef", "InvalidKind"
_MAX_INPUT_CHARS = 4 * MAX_CA_CERTIFICATES_CHARS  # of a value that is parsed; it may have comments
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class RefError(NamedTuple):
    """Why a reference provides no certificate. `reason` is that of the condition ResolvedRefs."""

    reason: str
    message: str


class Authorities(NamedTuple):
    """`pem`: certificates of the valid references, empty if none. `errors`: of the others."""

    pem: str
    errors: tuple[RefError, ...]


def has_certificate_refs(policy: L7Object) -> bool:
    """Whether the policy has `validation.caCertificateRefs`."""
    return bool(_refs(policy))


def config_map_names(policy: L7Object) -> list[str]:
    """The ConfigMaps to read, in the namespace of the policy, without duplicates."""
    names = [ref["name"] for ref in _refs(policy)[:MAX_REFS] if not _ref_error(ref)]
    return list(dict.fromkeys(names))


def read_authorities(
    policy: L7Object, config_maps: Mapping[str, Mapping[str, Any] | None]
) -> Authorities:
    """Return the authorities. `config_maps`: `data` by name; None if it does not exist."""
    found: dict[str, None] = {}
    errors, chars = [], 0
    for index, ref in enumerate(_refs(policy)):
        where = f"spec.validation.caCertificateRefs[{index}]"
        error = _ref_error(ref)
        if index >= MAX_REFS:
            error = RefError(INVALID_REF, f"more than {MAX_REFS} references")
        if error is None:
            read = _certificates(ref["name"], config_maps.get(ref["name"]))
            if isinstance(read, list):
                new = [each for each in dict.fromkeys(read) if each not in found]
                chars += sum(map(len, new))
                if chars <= MAX_CA_CERTIFICATES_CHARS:
                    found |= dict.fromkeys(new)
                    continue
                read = f"over {MAX_CA_CERTIFICATES_CHARS} characters of certificates"
            error = RefError(INVALID_REF, read)
        errors.append(RefError(error.reason, f"{where}: {error.message}"))
    return Authorities("".join(found), tuple(errors))


def _refs(policy: L7Object) -> list[Any]:
    validation = policy.spec.get("validation")
    found = validation.get("caCertificateRefs") if isinstance(validation, dict) else None
    return found if isinstance(found, list) else []


def _ref_error(ref: object) -> RefError | None:
    if not isinstance(ref, dict):
        return RefError(INVALID_REF, "not a reference")
    if ref.get("kind") != "ConfigMap" or ref.get("group") not in (None, ""):
        kind = str(ref.get("kind"))[:64]
        return RefError(INVALID_KIND, f"kind {kind!r} is not supported; hint: use a ConfigMap")
    name = ref.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):  # it becomes a part of a URL
        return RefError(INVALID_REF, "not the name of a ConfigMap")
    return None


def _certificates(name: str, data: Mapping[str, Any] | None) -> list[str] | str:
    """The certificates of a ConfigMap as PEM, or why it has none."""
    if data is None:
        return f"ConfigMap {name} does not exist"
    text = data.get(CA_KEY)
    if not isinstance(text, str):
        return f"ConfigMap {name} has no key {CA_KEY}"
    if len(text) > _MAX_INPUT_CHARS:
        return f"{CA_KEY} of ConfigMap {name} has over {_MAX_INPUT_CHARS} characters"
    try:
        certificates = x509.load_pem_x509_certificates(text.encode())
    except (ValueError, x509.InvalidVersion):
        return f"{CA_KEY} of ConfigMap {name} is not a list of certificates in PEM"
    return [each.public_bytes(Encoding.PEM).decode() for each in certificates]
