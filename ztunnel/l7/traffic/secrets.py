# SPDX-License-Identifier: Apache-2.0
"""Envoy's secrets of a gateway: names of files in the mounted Secret, never their content.

Envoy gets a secret by ADS when a listener or cluster refers to it, reads the files, and reads them
again whenever the kubelet replaces the content of the directory.
"""

from __future__ import annotations

from ztunnel.l7 import names
from ztunnel.l7.config import Json

# Certificates that Envoy has not got by then do not delay the listener: its other chains work.
INITIAL_FETCH_TIMEOUT = "2s"


def certificate_name(id_: str) -> str:
    """The name of the secret with a certificate and its key: the name of the file."""
    return f"{id_}.crt"


def authorities_name(id_: str) -> str:
    """The name of the secret with authorities: the name of the file."""
    return f"{id_}.ca"


def secret(name: str) -> Json:
    """The secret of a name that one of the functions above returned."""
    id_, _, kind = name.partition(".")
    watched = {"watched_directory": {"path": names.GATEWAY_CERTIFICATES_DIRECTORY}}
    if kind == "ca":
        return {"name": name, "validation_context": {"trusted_ca": _file(name), **watched}}
    pair = {"certificate_chain": _file(name), "private_key": _file(f"{id_}.key"), **watched}
    return {"name": name, "tls_certificate": pair}


def reference(name: str) -> Json:
    """SdsSecretConfig: the secret of a name, by ADS."""
    source = {
        "ads": {},
        "resource_api_version": "V3",
        "initial_fetch_timeout": INITIAL_FETCH_TIMEOUT,
    }
    return {"name": name, "sds_config": source}


def _file(name: str) -> Json:
    # `..data` is what the kubelet replaces. It creates the links beside it afterwards, when Envoy
    # has read the files already.
    return {"filename": f"{names.GATEWAY_CERTIFICATES_DIRECTORY}/..data/{name}"}
