# SPDX-License-Identifier: Apache-2.0
"""What the status of a Gateway depends on besides the objects: observed where its pods run.

The controller of a cluster fills it from the API server, `ztctl` and the lab from what they know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ztunnel.l7.problems import Problem

MAX_ADDRESSES = 16  # of a Gateway's status, by its schema


class AddressType(StrEnum):
    """`type` of an address in the spec and the status of a Gateway (Gateway API)."""

    IP = "IPAddress"
    HOSTNAME = "Hostname"


class GatewayAddress(NamedTuple):
    """An address at which clients reach a Gateway."""

    type: AddressType
    value: str


class CertificateError(StrEnum):
    """Why the newest version of a certificate is not in use."""

    MISSING = "missing"  # the object does not exist
    INVALID = "invalid"  # it exists, and has no valid certificate, key or pair
    UNSUPPORTED_KIND = "unsupported kind"
    NOT_PERMITTED = "not permitted"  # of a bundle: no ReferenceGrant permits a reference
    UNREADABLE = "unreadable"  # the controller has no right to read it
    TOO_MANY = "too many"  # the Gateway refers to more certificates than it may have


class CertificateFact(NamedTuple):
    """The state of one certificate, or of one bundle of CA certificates.

    `usable`: the pods have a valid version of it; with an `error` it is an earlier version, or a
    bundle without some of its references. `message`: what was found, without key material.
    """

    usable: bool
    error: CertificateError | None = None
    message: str = ""


@dataclass(frozen=True)
class GatewayFacts:
    """`problems`: of its infrastructure. `wanted`, `ready`: pods.

    `addresses`: of its Service or its nodes. `address_error`: why `spec.addresses` is not used.
    `conflict`: why its objects could not be applied.
    `detail`: why pods are missing, as reported by Kubernetes.
    `certificates`: by name of the file in the pods, `<id>.crt` or `<id>.ca` (`l7.names`); one
    for each reference of the Gateway and its ListenerSets that their namespaces permit.
    """

    problems: Sequence[Problem] = ()
    addresses: Sequence[GatewayAddress] = ()
    wanted: int = 1
    ready: int = 0
    conflict: str = ""
    detail: str = ""
    address_error: str = ""
    certificates: Mapping[str, CertificateFact] = field(default_factory=dict)


def ip_addresses(values: Sequence[str]) -> tuple[GatewayAddress, ...]:
    """Addresses of type IPAddress."""
    return tuple(GatewayAddress(AddressType.IP, value) for value in values)
