# SPDX-License-Identifier: Apache-2.0
"""The Secret with the certificates of an ingress gateway, which its pods mount.

    references, the Secrets and ConfigMaps they name, the files that the pods have
        ──▶ files: <id>.crt and <id>.key of a certificate, <id>.ca of a bundle of authorities
        ──▶ a fact for each file: usable or not, and why the newest version is not in use

A version that is invalid, or an object that is gone, leaves the files of the last valid version. A
reference that is removed, or not permitted any more, removes them. Messages contain names only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from ztunnel.l7.deployment.certificate_data import (
    Absent,
    Data,
    InvalidCertificateError,
    read_authorities,
    read_pair,
)
from ztunnel.l7.deployment.resources import certificates_name, object_labels, owner_reference
from ztunnel.l7.deployment.settings import Json
from ztunnel.l7.names import (
    MAX_GATEWAY_CERTIFICATES,
    CertificateSource,
    ca_id,
    certificate_id,
)
from ztunnel.l7.objects import L7Object
from ztunnel.l7.status.facts import CertificateError, CertificateFact

MAX_SECRET_BYTES = 960 << 10  # of all files: a Secret may have 1 MiB (Kubernetes)
_DIGEST_CHARS = 16

Files = Mapping[str, bytes]  # content by name


class FileKind(StrEnum):
    """What a file contains, by its suffix."""

    CERTIFICATE = "crt"
    AUTHORITIES = "ca"


class CertificateUse(NamedTuple):
    """A certificate, or a bundle of authorities, that a gateway refers to.

    `sources`: those that may be read; of a certificate exactly one. `rejected`: what is wrong with
    the other references, if there are some.
    """

    kind: FileKind
    id: str
    sources: tuple[CertificateSource, ...]
    rejected: tuple[CertificateError, str] | None = None

    @property
    def file(self) -> str:
        """The name of the file, which identifies the use in facts and in Envoy."""
        return f"{self.id}.{self.kind}"


class GatewayFiles(NamedTuple):
    """`files`: of the Secret. `facts`: by name of a certificate or bundle."""

    files: dict[str, bytes]
    facts: dict[str, CertificateFact]

    @property
    def annotation(self) -> str:
        """The usable certificates and bundles with digests, for an annotation. No keys."""
        found = {
            name: hashlib.sha256(content).hexdigest()[:_DIGEST_CHARS]
            for name, content in sorted(self.files.items())
            if not name.endswith(".key")
        }
        return json.dumps(found, separators=(",", ":")) if found else ""

    @property
    def digest(self) -> str:
        """Changes with every file."""
        lines = [
            f"{name} {hashlib.sha256(content).hexdigest()}"
            for name, content in sorted(self.files.items())
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGEST_CHARS]


def certificate_use(source: CertificateSource) -> CertificateUse:
    """The use of a certificate and its key."""
    return CertificateUse(FileKind.CERTIFICATE, certificate_id(*source), (source,))


def authorities_use(
    references: Sequence[CertificateSource],
    permitted: Sequence[CertificateSource],
    rejected: tuple[CertificateError, str] | None = None,
) -> CertificateUse:
    """The use of a bundle. `references`: all of the field; `permitted`: those to be read."""
    return CertificateUse(FileKind.AUTHORITIES, ca_id(references), tuple(permitted), rejected)


def gateway_files(
    uses: Iterable[CertificateUse],
    objects: Mapping[CertificateSource, Data | Absent],
    current: Files,
) -> GatewayFiles:
    """Return what the Secret must contain. `current`: what it contains."""
    found = GatewayFiles({}, {})
    count = size = 0
    for use in dict.fromkeys(uses):
        if use.file in found.facts:
            continue
        files, fact = _files(use, objects, current)
        added = sum(map(len, files.values()))
        is_full = count >= MAX_GATEWAY_CERTIFICATES or size + added > MAX_SECRET_BYTES
        if files and is_full:
            message = (
                f"{_names(use)}: the Gateway has more than {MAX_GATEWAY_CERTIFICATES} "
                f"certificates, or {MAX_SECRET_BYTES >> 10} KiB of them"
            )
            files, fact = {}, CertificateFact(False, CertificateError.TOO_MANY, message)
        elif files:
            count, size = count + 1, size + added
        found.files.update(files)
        found.facts[use.file] = fact
    return found


def certificates_secret(gateway: L7Object, uid: str, files: Files) -> Json:
    """The Secret, for server-side apply."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": certificates_name(gateway),
            "namespace": gateway.namespace,
            "labels": object_labels(gateway),
            "ownerReferences": [owner_reference(gateway, uid)],
        },
        "data": {name: base64.b64encode(content).decode() for name, content in files.items()},
    }


def _files(
    use: CertificateUse, objects: Mapping[CertificateSource, Data | Absent], current: Files
) -> tuple[dict[str, bytes], CertificateFact]:
    if use.kind is FileKind.AUTHORITIES:
        return _bundle(use, objects, current)
    (source,) = use.sources
    try:
        chain, key = read_pair(_data(objects, source))
        return {use.file: chain, f"{use.id}.key": key}, CertificateFact(usable=True)
    except (_AbsentError, InvalidCertificateError) as found:
        error, message = _error(source, found)
    names = (use.file, f"{use.id}.key")
    if all(name in current for name in names):
        message += "; the previous version stays in use"
        return {name: current[name] for name in names}, CertificateFact(True, error, message)
    return {}, CertificateFact(False, error, message)


def _bundle(
    use: CertificateUse, objects: Mapping[CertificateSource, Data | Absent], current: Files
) -> tuple[dict[str, bytes], CertificateFact]:
    """The valid references suffice; without any, those of the previous version."""
    certificates: dict[bytes, None] = {}
    errors = [use.rejected] if use.rejected else []
    for source in use.sources:
        try:
            certificates |= dict.fromkeys(read_authorities(_data(objects, source)))
        except (_AbsentError, InvalidCertificateError) as found:
            errors.append(_error(source, found))
    error = errors[0][0] if errors else None
    message = "; ".join(each for _, each in errors)
    if certificates:
        return {use.file: b"".join(certificates)}, CertificateFact(True, error, message)
    if use.sources and use.file in current:
        message += "; the previous version stays in use"
        return {use.file: current[use.file]}, CertificateFact(True, error, message)
    return {}, CertificateFact(False, error or CertificateError.MISSING, message or "no reference")


class _AbsentError(Exception):
    def __init__(self, reason: Absent) -> None:
        self.reason = reason


def _data(objects: Mapping[CertificateSource, Data | Absent], source: CertificateSource) -> Data:
    found = objects.get(source, Absent.MISSING)
    if isinstance(found, Absent):
        raise _AbsentError(found)
    return found


def _error(source: CertificateSource, found: Exception) -> tuple[CertificateError, str]:
    name = f"{source.kind} {source.namespace}/{source.name}"
    reason = found.reason if isinstance(found, _AbsentError) else None
    if reason is Absent.MISSING:
        return CertificateError.MISSING, f"{name} does not exist"
    if reason is Absent.UNREADABLE:
        message = f"{name}: the controller may not read it; hint: see docs/tasks/run-gateways.md"
        return CertificateError.UNREADABLE, message
    return CertificateError.INVALID, f"{name}: {found}"


def _names(use: CertificateUse) -> str:
    return ", ".join(f"{each.kind} {each.namespace}/{each.name}" for each in use.sources)
