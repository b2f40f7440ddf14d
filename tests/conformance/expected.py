# SPDX-License-Identifier: Apache-2.0
"""Which mesh tests of the suite exist, and which of them cannot pass, with the reason."""

from __future__ import annotations

CORE = frozenset(
    {
        "MeshBasic",
        "MeshGRPCRouteWeight",
        "MeshHTTPRouteMatching",
        "MeshHTTPRouteRedirectHostAndStatus",
        "MeshHTTPRouteRequestHeaderModifier",
        "MeshHTTPRouteSimpleSameNamespace",
        "MeshHTTPRouteWeight",
        "MeshTrafficSplit",
    }
)
EXTENDED = frozenset(
    {
        "MeshHTTPRouteBackendRequestHeaderModifier",
        "MeshHTTPRouteNamedRule",
        "MeshHTTPRouteQueryParamMatching",
        "MeshHTTPRouteRedirectPath",
        "MeshHTTPRouteRedirectPort",
        "MeshHTTPRouteRewritePath",
        "MeshHTTPRouteSchemeRedirect",
    }
)
NO_PROFILE = frozenset(
    {
        "MeshConsumerRoute",
        "MeshFrontend",
        "MeshFrontendHostname",
        "MeshHTTPRoute303Redirect",
        "MeshHTTPRoute307Redirect",
        "MeshHTTPRoute308Redirect",
        "MeshPorts",
    }
)
ALL = CORE | EXTENDED | NO_PROFILE
CANNOT_PASS: dict[str, str] = {}
"""Test -> why it cannot pass. The test suite fails if one of these passes."""
