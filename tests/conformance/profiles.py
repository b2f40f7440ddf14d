# SPDX-License-Identifier: Apache-2.0
"""Profiles of the conformance suite, and the two runs that cover them.

Names and contents: `conformance/utils/suite/profiles.go` and `pkg/features` of the Gateway API.
The suite runs once for meshes and once for gateways, because labels of the suite's namespaces,
such as the waypoint's, apply to all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tests.conformance import waypoint
from tests.support.nodes.objects import AMBIENT
from ztunnel.l7.status.features import SUPPORTED_FEATURES

GATEWAY_CLASS = "ztunnel"
MESH_PREFIX = "Mesh"  # of the names of all mesh tests
_GATEWAY = frozenset({"Gateway", "ReferenceGrant"})
_GATEWAY_EXTENDED = frozenset(
    {
        "GatewayPort8080",
        "GatewayStaticAddresses",
        "GatewayHTTPListenerIsolation",
        "GatewayHTTPSListenerDetectMisdirectedRequests",
        "GatewayInfrastructure",
        "GatewayAddressEmpty",
        "GatewayBackendClientCertificate",
        "GatewayFrontendClientCertificateValidation",
        "GatewayFrontendClientCertificateValidationInsecureFallback",
        "ListenerSet",
    }
)
_HTTP_ROUTE_EXTENDED = frozenset(
    f"HTTPRoute{name}"
    for name in (
        "303RedirectStatusCode",
        "307RedirectStatusCode",
        "308RedirectStatusCode",
        "BackendProtocolH2C",
        "BackendProtocolWebSocket",
        "BackendRequestHeaderModification",
        "BackendTimeout",
        "CORS",
        "DestinationPortMatching",
        "HostRewrite",
        "MethodMatching",
        "NamedRouteRule",
        "ParentRefPort",
        "PathRedirect",
        "PathRewrite",
        "PortRedirect",
        "QueryParamMatching",
        "RequestMirror",
        "RequestMultipleMirrors",
        "RequestPercentageMirror",
        "RequestTimeout",
        "ResponseHeaderModification",
        "Retry",
        "RetryBackendTimeout",
        "RetryConnectionError",
        "SchemeRedirect",
    )
)
_BACKEND_TLS = frozenset({"BackendTLSPolicy", "BackendTLSPolicySANValidation"})
_MESH_EXTENDED = frozenset(
    {
        "MeshClusterIPMatching",
        "MeshConsumerRoute",
        "MeshHTTPRouteBackendRequestHeaderModification",
        "MeshHTTPRouteNamedRouteRule",
        "MeshHTTPRouteQueryParamMatching",
        "MeshHTTPRouteRedirectPath",
        "MeshHTTPRouteRedirectPort",
        "MeshHTTPRouteRewritePath",
        "MeshHTTPRouteSchemeRedirect",
    }
)


class Level(StrEnum):
    """Which part of the profiles of a run a test belongs to."""

    CORE = "core"
    EXTENDED = "extended"
    NONE = "no profile"


class Profile(NamedTuple):
    """Features that tests of a profile may rely on."""

    core: frozenset[str]
    extended: frozenset[str]


@dataclass(frozen=True)
class Scope:
    """One run of the suite.

    `supported`: the features of which tests run. `namespace_labels`: of the suite's namespaces.
    """

    title: str
    profiles: Mapping[str, Profile]
    supported: frozenset[str]
    namespace_labels: Mapping[str, str]
    gateway_class: str = ""

    def level(self, features: Iterable[str]) -> Level:
        """The level of a test, by the features it relies on, as in the suite's own report."""
        used = set(features)
        if any(used <= profile.core for profile in self.profiles.values()):
            return Level.CORE
        if any(used <= profile.core | profile.extended for profile in self.profiles.values()):
            return Level.EXTENDED
        return Level.NONE

    def has(self, test: str) -> bool:
        """Whether a test belongs to the run."""
        return test.startswith(MESH_PREFIX) != bool(self.gateway_class)


MESH = Scope(
    title="mesh",
    profiles={
        "MESH-HTTP": Profile(frozenset({"Mesh", "HTTPRoute"}), _MESH_EXTENDED),
        "MESH-GRPC": Profile(frozenset({"Mesh", "GRPCRoute"}), _MESH_EXTENDED),
    },
    supported=frozenset({"Mesh", "HTTPRoute", "GRPCRoute"})
    | _MESH_EXTENDED
    | {  # of no mesh profile, but mesh tests rely on them
        "HTTPRoute303RedirectStatusCode",
        "HTTPRoute307RedirectStatusCode",
        "HTTPRoute308RedirectStatusCode",
        "HTTPRouteParentRefPort",
        "HTTPRouteResponseHeaderModification",
    },
    namespace_labels=waypoint.LABELS,
)
GATEWAYS = Scope(
    title="gateway",
    profiles={
        "GATEWAY-HTTP": Profile(
            _GATEWAY | {"HTTPRoute"}, _GATEWAY_EXTENDED | _HTTP_ROUTE_EXTENDED | _BACKEND_TLS
        ),
        "GATEWAY-GRPC": Profile(_GATEWAY | {"GRPCRoute"}, _GATEWAY_EXTENDED),
        "GATEWAY-TLS": Profile(
            _GATEWAY | {"TLSRoute"},
            _GATEWAY_EXTENDED | {"TLSRouteModeTerminate", "TLSRouteModeMixed"},
        ),
        "GATEWAY-TCP": Profile(_GATEWAY | {"TCPRoute"}, _GATEWAY_EXTENDED),
        "GATEWAY-UDP": Profile(_GATEWAY | {"UDPRoute"}, _GATEWAY_EXTENDED),
    },
    supported=frozenset(SUPPORTED_FEATURES),
    namespace_labels=AMBIENT,
    gateway_class=GATEWAY_CLASS,
)
