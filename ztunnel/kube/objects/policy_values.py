# SPDX-License-Identifier: Apache-2.0
"""Values that policies match, in normal form. Pure.

Each function raises TranslateError, which names `name` in `fields`.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Network, ip_network

from ztunnel.kube.objects.fields import Fields

_NETWORK = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")


def port(text: str, fields: Fields, name: str) -> str:
    """A port number as decimal text."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536):
        raise fields.error(name, "port numbers as strings")
    return str(int(text))


def account(text: str, fields: Fields, name: str, namespace: str) -> str:
    """`namespace/name`; `namespace` is the default one."""
    parts = text.split("/")
    if "*" in text or len(parts) > 2 or not all(parts):
        raise fields.error(name, "service accounts as `name` or `namespace/name`, no wildcards")
    return text if len(parts) == 2 else f"{namespace}/{text}"


def network(text: str, fields: Fields, name: str) -> str:
    """In canonical form with host bits cleared; v4-mapped networks become IPv4."""
    try:
        if not _NETWORK.fullmatch(text):
            raise ValueError(text)
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise fields.error(name, "addresses or networks such as 10.0.0.0/8") from error
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return f"{mapped}/{network.prefixlen - 96}"
    return str(network)
