# SPDX-License-Identifier: Apache-2.0
"""The CA directory: created once despite concurrency; loaded only if its files match."""

from __future__ import annotations

import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ztunnel.identity import ca
from ztunnel.identity.csr import new_request
from ztunnel.identity.csr_signer import sign

TRUST_DOMAIN = "cluster.local"


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def test_created_ca_is_a_ten_year_p256_root_that_signs_only_certificates(tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    assert ca.create(tmp_path / "ca", TRUST_DOMAIN, now=now)
    certificate = ca.load(tmp_path / "ca").certificate
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)
    assert certificate.not_valid_after_utc - now == timedelta(days=3650)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    ca.create(tmp_path / "ca", TRUST_DOMAIN)
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ca" / ca.CA_KEY).stat().st_mode) == 0o600


def test_directory_has_the_form_of_istios_cacerts(tmp_path: Path) -> None:
    ca.create(tmp_path / "ca", TRUST_DOMAIN)
    assert {path.name for path in (tmp_path / "ca").iterdir()} == set(ca.FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]  # no draft left behind


def test_second_creation_keeps_the_first_ca(tmp_path: Path) -> None:
    first = ca.load_or_create(tmp_path / "ca", TRUST_DOMAIN)
    assert not ca.create(tmp_path / "ca", TRUST_DOMAIN)
    assert ca.load_or_create(tmp_path / "ca", TRUST_DOMAIN).certificate == first.certificate


def _race(directory: Path, gate: object, results: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    authority = ca.load_or_create(directory, TRUST_DOMAIN)
    results.put(authority.roots_pem)  # type: ignore[attr-defined]


def test_agents_that_start_at_once_share_one_ca(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(6), context.Queue()
    racers = [
        context.Process(target=_race, args=(tmp_path / "ca", gate, results)) for _ in range(6)
    ]
    for racer in racers:
        racer.start()
    roots = {results.get(timeout=30) for _ in racers}
    for racer in racers:
        racer.join(timeout=30)
    assert len(roots) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


def test_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    assert ca.load_or_create(tmp_path / "ca", TRUST_DOMAIN).roots_pem


def test_directory_with_other_files_is_rejected_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "notes.txt").write_text("mine")
    with pytest.raises(ca.CaError, match="empty the directory"):
        ca.create(tmp_path / "ca", TRUST_DOMAIN)
    with pytest.raises(ca.CaError, match=r"lacks ca-cert\.pem"):
        ca.load_or_create(tmp_path / "ca", TRUST_DOMAIN)


def test_key_of_another_certificate_is_rejected(tmp_path: Path) -> None:
    ca.create(tmp_path / "one", TRUST_DOMAIN)
    ca.create(tmp_path / "two", TRUST_DOMAIN)
    (tmp_path / "one" / ca.CA_KEY).write_bytes((tmp_path / "two" / ca.CA_KEY).read_bytes())
    with pytest.raises(ca.CaError, match="not the key of"):
        ca.load(tmp_path / "one")


def test_garbage_is_rejected(tmp_path: Path) -> None:
    ca.create(tmp_path / "ca", TRUST_DOMAIN)
    (tmp_path / "ca" / ca.CA_CERT).write_text("no certificate")
    with pytest.raises(ca.CaError, match="does not contain a usable CA"):
        ca.load(tmp_path / "ca")


def test_leaf_certificate_is_no_ca(tmp_path: Path) -> None:
    authority = ca.load_or_create(tmp_path / "ca", TRUST_DOMAIN)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        x509.CertificateBuilder()
        .subject_name(authority.certificate.subject)
        .issuer_name(authority.certificate.subject)
        .public_key(authority.key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "ca" / ca.CA_CERT).write_bytes(_pem(leaf))
    with pytest.raises(ca.CaError, match="not a CA certificate"):
        ca.load(tmp_path / "ca")


def test_repr_hides_the_key(tmp_path: Path) -> None:
    assert "key" not in repr(ca.load_or_create(tmp_path / "ca", TRUST_DOMAIN)).lower()


def test_intermediate_is_sent_with_the_leaf_but_the_root_is_not(tmp_path: Path) -> None:
    root = ca.load_or_create(tmp_path / "root", TRUST_DOMAIN)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "intermediate")])
    intermediate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(8)
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root.key, hashes.SHA256())
    )
    directory = tmp_path / "plugged-in"
    directory.mkdir()
    (directory / ca.CA_CERT).write_bytes(_pem(intermediate))
    (directory / ca.CERT_CHAIN).write_bytes(_pem(intermediate) + root.roots_pem)
    (directory / ca.ROOT_CERT).write_bytes(root.roots_pem)
    (directory / ca.CA_KEY).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    loaded = ca.load(directory)
    assert loaded.intermediates_pem == _pem(intermediate)
    assert loaded.roots_pem == root.roots_pem


@pytest.mark.parametrize(("bits", "usable"), [(2048, True), (1024, False)])
def test_rsa_key_is_accepted_from_2048_bits(bits: int, usable: bool) -> None:
    parts = _with_key(rsa.generate_private_key(65537, bits))
    if not usable:
        with pytest.raises(ca.CaError, match="2048 bits"):
            ca.assemble(parts, "secret ztunnel-system/cacerts")
        return
    authority = ca.assemble(parts, "secret ztunnel-system/cacerts")
    identity = "spiffe://cluster.local/ns/shop/sa/web"
    issued = sign(authority, new_request(identity).csr_pem, identity, now=datetime.now(UTC))
    x509.load_pem_x509_certificate(issued.chain_pem).verify_directly_issued_by(
        authority.certificate
    )


def test_missing_file_is_named_with_its_directory() -> None:
    with pytest.raises(ca.CaError, match=r"secret a/b lacks ca-key\.pem"):
        ca.assemble({name: b"" for name in ca.FILES if name != ca.CA_KEY}, "secret a/b")


def test_root_of_another_ca_is_rejected() -> None:
    now = datetime.now(UTC)
    one, two = (ca.self_signed(TRUST_DOMAIN, now) for _ in range(2))
    with pytest.raises(ca.CaError, match=r"does not chain to a root of root-cert\.pem"):
        ca.assemble({**one, ca.ROOT_CERT: two[ca.ROOT_CERT]}, "secret a/b")
    both = one[ca.ROOT_CERT] + two[ca.ROOT_CERT]
    assert ca.assemble({**one, ca.ROOT_CERT: both}, "secret a/b").roots_pem == both


def _with_key(key: rsa.RSAPrivateKey) -> dict[str, bytes]:
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Istio")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(9)
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = _pem(certificate)
    return {
        ca.CA_CERT: public,
        ca.CA_KEY: secret,
        ca.CERT_CHAIN: public,
        ca.ROOT_CERT: public,
    }
