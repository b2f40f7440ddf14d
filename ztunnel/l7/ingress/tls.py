# SPDX-License-Identifier: Apache-2.0
"""TLS of listeners towards clients."""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.l7.api.gateway import GatewaySpec
from ztunnel.l7.config import Json
from ztunnel.l7.ingress.listeners import EffectiveListener
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.problems import Problem


@dataclass(frozen=True)
class TlsContext:
    """The TLS of a listener. `transport_socket`: None if no connection may be accepted.

    `secrets`: resources of type Secret that it refers to, by name.
    """

    transport_socket: Json | None
    secrets: dict[str, Json] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def downstream_tls(inputs: Inputs, gateway: GatewaySpec, listener: EffectiveListener) -> TlsContext:
    """Return the TLS of a listener that terminates it."""
    return TlsContext(None)
