# SPDX-License-Identifier: Apache-2.0
"""Which tests of the suite exist, and which of them do not pass, with the reason."""

from __future__ import annotations

MESH_COUNTS = {  # by profile: core and extended tests; of mesh tests without a profile
    "MESH-HTTP": (7, 7),
    "MESH-GRPC": (2, 0),
}
MESH_TESTS = 22
GATEWAY_COUNTS = {
    "GATEWAY-HTTP": (36, 57),  # of 58: the suite does not count HTTPRouteRetry, see below
    "GATEWAY-GRPC": (14, 11),
    "GATEWAY-TLS": (19, 16),
    "GATEWAY-TCP": (18, 11),
    "GATEWAY-UDP": (19, 11),
}
GATEWAY_TESTS = 131
UNSUPPORTED = {
    "HTTPRouteRetry": "the field is not part of the standard channel of the API",
}
"""Feature -> why the tests that rely on it do not run."""
CANNOT_PASS: dict[str, str] = {}
"""Test -> why it cannot pass. The test suite fails if one of these passes."""
