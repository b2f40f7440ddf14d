# SPDX-License-Identifier: Apache-2.0
"""Loads a certificate and its key into an SSLContext without a file on disk."""

from __future__ import annotations

import os
import ssl


def load(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Load chain and key. Python loads keys only from paths; a memfd never reaches a disk."""
    fd = os.memfd_create("zt-key", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(key_pem + b"\n" + chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
