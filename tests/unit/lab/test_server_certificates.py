# SPDX-License-Identifier: Apache-2.0
"""Certificates of HTTPS servers in a lab."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509

from ztunnel.lab.server_certificates import ROOT_FILE, tls_secret


def chain(directory: Path) -> x509.Certificate:
    data = tls_secret(directory, "tls", "shop", ["my-app.example", "172.30.1.7"])["stringData"]
    return x509.load_pem_x509_certificate(data["tls.crt"].encode())


def test_certificates_of_one_directory_are_trusted_by_the_same_root(tmp_path: Path) -> None:
    first, second = chain(tmp_path / "ca"), chain(tmp_path / "ca")
    assert first.serial_number != second.serial_number
    root = x509.load_pem_x509_certificate((tmp_path / "ca" / ROOT_FILE).read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    for leaf in (first, second):
        leaf.verify_directly_issued_by(root)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["my-app.example"]
        assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["172.30.1.7"]
        assert leaf.not_valid_before_utc < now < leaf.not_valid_after_utc
