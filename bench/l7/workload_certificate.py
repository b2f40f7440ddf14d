# SPDX-License-Identifier: Apache-2.0
"""A workload certificate from a lab's CA, as files for Envoy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from ztunnel.identity import ca, csr_signer
from ztunnel.identity.csr import new_request


def write(directory: Path, ca_dir: Path, identity: str) -> Mapping[str, Path]:
    """Write `chain`, `key` and `roots` of a new certificate; return their paths."""
    directory.mkdir(exist_ok=True)
    request = new_request(identity)
    authority = ca.load(ca_dir)
    made = csr_signer.sign(authority, request.csr_pem, request.identity, now=datetime.now(UTC))
    files = {"chain": made.chain_pem, "key": request.key_pem, "roots": made.roots_pem}
    paths = {}
    for name, text in files.items():
        paths[name] = directory / f"{name}.pem"
        paths[name].touch(mode=0o600)
        paths[name].write_bytes(text)
    return paths
