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
AUTHORITIES_SUFFIX = ".ca"


def secret(name: str) -> Json:
    """The secret of a name: an id is a certificate with its key, `<id>.ca` is authorities.

    Names of certificates have no dot: Envoy derives the name of the metric with the expiry from it.
    """
    watched = {"watched_directory": {"path": names.GATEWAY_CERTIFICATES_DIRECTORY}}
    if name.endswith(AUTHORITIES_SUFFIX):
        return {"name": name, "validation_context": {"trusted_ca": _file(name), **watched}}
    pair = {"certificate_chain": _file(f"{name}.crt"), "private_key": _file(f"{name}.key")}
    return {"name": name, "tls_certificate": {**pair, **watched}}


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
