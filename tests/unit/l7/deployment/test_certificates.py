# SPDX-License-Identifier: Apache-2.0
"""The Secret with the certificates of an ingress gateway."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.support.certificates import Authority, server_pair
from ztunnel.l7.deployment.certificate_data import (
    Absent,
    Data,
    InvalidCertificateError,
    decoded,
    read_authorities,
    read_pair,
)
from ztunnel.l7.deployment.certificates import (
    CertificateUse,
    GatewayFiles,
    authorities_use,
    certificate_use,
    certificates_secret,
    gateway_files,
)
from ztunnel.l7.names import MAX_GATEWAY_CERTIFICATES, CertificateSource
from ztunnel.l7.objects import l7_object
from ztunnel.l7.status.facts import CertificateError

WEB = CertificateSource("Secret", "shop", "web")
ROOTS = CertificateSource("ConfigMap", "shop", "roots")
MORE_ROOTS = CertificateSource("ConfigMap", "shop", "more")


def pair(host: str = "web.example.com") -> Data:
    chain, key = server_pair(host)
    return {"tls.crt": chain, "tls.key": key}


def of_web(found: Data | Absent, current: Data | None = None) -> GatewayFiles:
    return gateway_files([certificate_use(WEB)], {WEB: found}, current or {})


def test_valid_pair_is_written_under_its_id() -> None:
    use, data = certificate_use(WEB), pair()
    found = of_web(data)
    assert found.files[f"{use.id}.crt"] == data["tls.crt"]
    assert b"PRIVATE KEY" in found.files[f"{use.id}.key"]
    assert found.facts == {use.file: (True, None, "")}
    assert list(json.loads(found.annotation)) == [f"{use.id}.crt"]


def test_only_certificates_of_the_chain_are_written() -> None:
    data = dict(pair())
    chain = data["tls.crt"]
    data["tls.crt"] = b"a comment\n" + chain + data["tls.key"]
    assert of_web(data).files[certificate_use(WEB).file] == chain


@pytest.mark.parametrize(
    "damage",
    [
        {"tls.crt": b""},
        {"tls.key": b""},
        {"tls.crt": b"no PEM"},
        {"tls.key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
        {"tls.key": server_pair("other.example.com")[1]},
        {"tls.crt": b"x" * (300 << 10)},
    ],
)
def test_invalid_pair_is_not_written_and_leaves_the_previous_one(damage: dict[str, bytes]) -> None:
    data = {**pair(), **damage}
    fresh = of_web(data)
    (fact,) = fresh.facts.values()
    assert (fresh.files, fresh.annotation) == ({}, "")
    assert (fact.usable, fact.error) == (False, CertificateError.INVALID)
    assert fact.message.startswith("Secret shop/web: ")
    before = of_web(pair())
    after = of_web(data, before.files)
    (fact,) = after.facts.values()
    assert after.files == before.files
    assert (fact.usable, fact.error) == (True, CertificateError.INVALID)
    assert fact.message.endswith("the previous version stays in use")


def test_missing_secret_leaves_the_previous_pair_until_the_reference_goes() -> None:
    before = of_web(pair())
    gone = of_web(Absent.MISSING, before.files)
    assert gone.files == before.files
    assert next(iter(gone.facts.values())).error is CertificateError.MISSING
    assert gateway_files([], {}, before.files).files == {}


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (rsa.generate_private_key(65537, 1024), "1024 bits"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
    ],
)
def test_keys_that_envoy_rejects_are_invalid(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, error: str
) -> None:
    chain, secret = server_pair("web.example.com", key)
    with pytest.raises(InvalidCertificateError, match=error):
        read_pair({"tls.crt": chain, "tls.key": secret})


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())]
)
def test_keys_that_envoy_accepts_are_valid(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    chain, secret = server_pair("web.example.com", key)
    assert read_pair({"tls.crt": chain, "tls.key": secret})[0] == chain


def test_encrypted_key_is_invalid_and_not_in_the_message() -> None:
    key = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n"
    with pytest.raises(InvalidCertificateError) as error:
        read_pair({**pair(), "tls.key": key})
    assert "c2VjcmV0" not in str(error.value)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_either_valid_or_an_error(chain: bytes, key: bytes) -> None:
    with pytest.raises(InvalidCertificateError):
        read_pair({"tls.crt": chain, "tls.key": key})


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.text(), st.integers(), st.none())))
def test_any_data_is_decoded(data: dict[str, object]) -> None:
    for kind in ("Secret", "ConfigMap"):
        found = decoded({"kind": kind, "data": data})
        assert not isinstance(found, Absent)
        assert found.keys() == data.keys()


def bundle(*sources: CertificateSource) -> CertificateUse:
    return authorities_use(sources, sources)


def test_bundle_contains_the_certificates_of_all_references() -> None:
    one, two = Authority("one").root_pem, Authority("two").root_pem
    use = bundle(ROOTS, MORE_ROOTS)
    found = gateway_files([use], {ROOTS: {"ca.crt": one}, MORE_ROOTS: {"ca.crt": two + one}}, {})
    assert found.files == {use.file: one + two}
    assert found.facts == {use.file: (True, None, "")}


def test_bundle_is_used_without_its_invalid_references() -> None:
    use, root = bundle(ROOTS, MORE_ROOTS), Authority().root_pem
    found = gateway_files([use], {ROOTS: {"ca.crt": b"nothing"}, MORE_ROOTS: {"ca.crt": root}}, {})
    assert found.files == {use.file: root}
    assert found.facts[use.file].error is CertificateError.INVALID


def test_bundle_without_permitted_references_is_removed() -> None:
    rejected = (CertificateError.UNSUPPORTED_KIND, "kind Service is not supported")
    use = authorities_use([ROOTS], [], rejected)
    found = gateway_files([use], {}, {use.file: b"previous"})
    assert found.files == {}
    assert found.facts[use.file] == (False, *rejected)


def test_authorities_are_not_read_from_a_key() -> None:
    with pytest.raises(InvalidCertificateError, match=r"ca\.crt"):
        read_authorities({"ca.crt": pair()["tls.key"]})


def test_certificates_beyond_the_limit_are_reported() -> None:
    data = pair()
    count = MAX_GATEWAY_CERTIFICATES + 2
    sources = [CertificateSource("Secret", "shop", f"s{n}") for n in range(count)]
    found = gateway_files(map(certificate_use, sources), dict.fromkeys(sources, data), {})
    assert len(found.files) == 2 * MAX_GATEWAY_CERTIFICATES
    errors = [fact.error for fact in found.facts.values()]
    assert errors[-2:] == [CertificateError.TOO_MANY] * 2
    assert not any(errors[:-2])


def test_missing_certificates_do_not_count_towards_the_limit() -> None:
    data = pair()
    missing = [CertificateSource("Secret", "tenant", f"s{n}") for n in range(100)]
    own = CertificateSource("Secret", "shop", "web")
    found = gateway_files(map(certificate_use, [*missing, own]), {own: data}, {})
    assert found.facts[certificate_use(own).file].usable


def test_digest_changes_with_the_key_and_annotation_has_no_key() -> None:
    one = of_web(pair())
    name = next(each for each in one.files if each.endswith(".key"))
    other = GatewayFiles({**one.files, name: b"another"}, {})
    assert one.digest != other.digest
    assert one.annotation == other.annotation


def test_secret_belongs_to_the_gateway() -> None:
    gateway = l7_object(
        {
            "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": "shop"},
            "spec": {"gatewayClassName": "istio"},
        }
    )
    secret = certificates_secret(gateway, "u1", {"a.crt": b"text"})
    assert secret["metadata"]["name"] == "edge-istio-certificates"
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "u1"
    assert base64.b64decode(secret["data"]["a.crt"]) == b"text"
