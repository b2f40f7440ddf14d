# SPDX-License-Identifier: Apache-2.0
"""The mounted certificates of a gateway, as the controller and the kubelet provide them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.waypoint.kubelet_directory import KubeletDirectory
from ztunnel.l7 import names
from ztunnel.l7.names import CertificateSource, ca_id, certificate_id


class GatewayCertificates:
    """Files below `directory`, and the annotation of the Gateway that lists them."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.authority = CertificateAuthority()
        self.directory = KubeletDirectory(directory / "certificates")
        self._files: dict[str, str] = {}
        patch.setattr(names, "GATEWAY_CERTIFICATES_DIRECTORY", str(self.directory.path))

    def add(self, secret: str, host: str, namespace: str = "default") -> None:
        """Issue a certificate for a host, as the content of a Secret."""
        pem = self.authority.issue(host)
        certificate, mark, key = pem.partition("-----BEGIN PRIVATE KEY-----")
        id_ = certificate_id("Secret", namespace, secret)
        self._write({f"{id_}.crt": certificate, f"{id_}.key": mark + key})

    def add_authorities(self, pem: str, *config_maps: str, namespace: str = "default") -> None:
        """Add the bundle of ConfigMaps."""
        id_ = ca_id(CertificateSource("ConfigMap", namespace, each) for each in config_maps)
        self._write({f"{id_}.ca": pem})

    @property
    def annotation(self) -> str:
        """The value of the Gateway's annotation."""
        return json.dumps({name: "0" * 16 for name in self._files if not name.endswith(".key")})

    def _write(self, files: dict[str, str]) -> None:
        self._files |= files
        self.directory.write(files)
