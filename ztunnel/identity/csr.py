# SPDX-License-Identifier: Apache-2.0
"""Creates a key and a certificate signing request for an identity."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class CertificateRequest:
    """A CSR for the signer (`csr_pem`), and its key, which never leaves the node (`key_pem`)."""

    identity: str
    csr_pem: bytes
    key_pem: bytes = field(repr=False)


def new_request(identity: str) -> CertificateRequest:
    """Create a P-256 key and a CSR whose only name is the SPIFFE ID `identity`."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)  # RFC 5280 4.2.1.6: the subject is empty
        .sign(key, hashes.SHA256())
    )
    return CertificateRequest(
        identity=identity,
        csr_pem=csr.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
