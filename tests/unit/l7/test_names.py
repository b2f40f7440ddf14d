# SPDX-License-Identifier: Apache-2.0
"""The ids of a gateway's certificates, which controller, lab and compiler compute independently."""

from __future__ import annotations

import hashlib

from ztunnel.l7.names import CertificateSource, ca_id, certificate_id


def test_certificate_id_is_the_digest_of_kind_namespace_and_name() -> None:
    expected = hashlib.sha256(b"Secret/shop/web").hexdigest()[:32]
    assert certificate_id("Secret", "shop", "web") == expected


def test_certificates_of_different_objects_have_different_ids() -> None:
    ids = {
        certificate_id("Secret", "a", "b"),
        certificate_id("Secret", "b", "a"),
        certificate_id("ConfigMap", "a", "b"),
    }
    assert len(ids) == 3


def test_bundle_of_one_reference_has_the_id_of_the_object() -> None:
    source = CertificateSource("ConfigMap", "a", "b")
    assert ca_id([source]) == certificate_id(*source)


def test_id_of_a_bundle_depends_on_all_references() -> None:
    one, two = CertificateSource("ConfigMap", "a", "b"), CertificateSource("ConfigMap", "a", "c")
    assert len({ca_id([one]), ca_id([two]), ca_id([one, two]), ca_id([two, one])}) == 4
