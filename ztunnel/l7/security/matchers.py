# SPDX-License-Identifier: Apache-2.0
"""Values of policies as matchers of Envoy. `ztunnel.l7.security.evaluate` has the same semantics.

The client's identity is text in the filter state, which the listener fills from the PROXY header
of the node proxy. Without an identity the key is absent, and no matcher matches.
"""

from __future__ import annotations

import re
from ipaddress import ip_network

from ztunnel.l7.api.policy_terms import is_template, request_principal_parts, template_regex
from ztunnel.l7.config import Json
from ztunnel.l7.names import PeerState

JWT_FILTER = "envoy.filters.http.jwt_authn"  # the namespace of its dynamic metadata
CLIENT_ADDRESS = "ztunnel.peer.address"  # a filter-state key
PAYLOAD = "payload"  # the key of a verified token's payload
_SCHEME = "spiffe://"
_PRESENT: Json = {"safe_regex": {"regex": ".+"}}


def text(value: str) -> Json:
    """A StringMatcher: exact, `*` (not empty), `prefix*` or `*suffix`."""
    if value == "*":
        return _PRESENT
    if value.startswith("*"):
        return {"suffix": value[1:]}
    if value.endswith("*"):
        return {"prefix": value[:-1]}
    return {"exact": value}


def principal(value: str) -> Json:
    """The identity without `spiffe://`."""
    if value == "*":
        return _identity({"prefix": _SCHEME})
    if value.startswith("*"):
        return _identity({"safe_regex": {"regex": f"{_SCHEME}.*{re.escape(value[1:])}"}})
    if value.endswith("*"):
        return _identity({"prefix": _SCHEME + value[:-1]})
    return _identity({"exact": _SCHEME + value})


def namespace(value: str) -> Json:
    """The namespace of the identity."""
    if value == "*":
        name = "[^/]+"
    elif value.startswith("*"):
        name = f"[^/]*{re.escape(value[1:])}"
    elif value.endswith("*"):
        name = f"{re.escape(value[:-1])}[^/]*"
    else:
        name = re.escape(value)
    return _identity({"safe_regex": {"regex": f"{_SCHEME}[^/]+/ns/{name}/sa/[^/]+"}})


def service_account(value: str) -> Json:
    """The service account of the identity, `namespace/name`."""
    place, _, name = value.partition("/")
    return _identity({"suffix": f"/ns/{place}/sa/{name}"})


def _identity(matcher: Json) -> Json:
    return {"filter_state": {"key": str(PeerState.IDENTITY), "string_match": matcher}}


def client_address(value: str) -> Json:
    """The client's address in a network; needs the filter of `client_address_filter`.

    In a PROXY header for an IPv6 destination, an IPv4 source is v4-mapped.
    """
    ranges = [network(value)]
    if ":" not in value:
        address, length = ranges[0]["address_prefix"], ranges[0]["prefix_len"]
        ranges.append({"address_prefix": f"::ffff:{address}", "prefix_len": 96 + length})
    return {"filter_state": {"key": CLIENT_ADDRESS, "address_match": {"ranges": ranges}}}


def client_address_filter() -> Json:
    """A network filter that stores the source of the PROXY header.

    RBAC's own fields do not match it: `direct_remote_ip` is the node proxy's, and `remote_ip` may
    be that of a request's x-forwarded-for, which a client may forge.
    """
    value = {
        "object_key": CLIENT_ADDRESS,
        "factory_key": "envoy.network.transport_socket.original_dst_address",  # for any address
        "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_REMOTE_ADDRESS%"}},
    }
    return {
        "name": "envoy.filters.network.set_filter_state",
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.filters.network.set_filter_state.v3.Config",
            "on_new_connection": [value],
        },
    }


def network(value: str) -> Json:
    """A CidrRange."""
    found = ip_network(value)
    return {"address_prefix": str(found.network_address), "prefix_len": found.prefixlen}


def header(name: str, value: str) -> Json:
    """A HeaderMatcher: one of the header's values matches."""
    if value == "*":
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": text(value)}


def host(value: str) -> Json:
    """The authority, ignoring case."""
    found = header(":authority", value)
    if "string_match" in found:
        found["string_match"] = {**found["string_match"], "ignore_case": True}
    return found


def host_at_any_port(value: str) -> Json:
    """The authority, ignoring case, and its port if the value has none."""
    found = host(value)
    if value == "*" or value.endswith("*") or ":" in value.rpartition("]")[2]:
        return found
    pattern = f".*{re.escape(value[1:])}" if value.startswith("*") else re.escape(value)
    regex = f"(?i){pattern}(?::[0-9]*)?"
    return {"name": ":authority", "string_match": {"safe_regex": {"regex": regex}}}


def path(value: str) -> Json:
    """A StringMatcher of the normalized path without its query.

    Envoy's own URI templates are not used: `*` does not match brackets there, so that a path could
    evade a template of a DENY policy.
    """
    if is_template(value):
        return {"safe_regex": {"regex": template_regex(value)}}
    return text(value)


def claim(key: tuple[str, ...], value: str) -> Json:
    """A claim of the verified token, a string or a list of strings."""
    matcher = {"string_match": text(value)}
    return _payload(key, {"or_match": {"value_matchers": [matcher, _in_list(matcher)]}})


def request_principal(value: str) -> Json:
    """Issuer and subject of the verified token."""
    ids = [
        _payload((name,), {"string_match": text(part)})
        for name, part in zip(("iss", "sub"), request_principal_parts(value), strict=True)
    ]
    return {"and_ids": {"ids": ids}}


def _in_list(matcher: Json) -> Json:
    return {"list_match": {"one_of": matcher}}


def _payload(key: tuple[str, ...], value: Json) -> Json:
    segments = [{"key": part} for part in (PAYLOAD, *key)]
    return {"metadata": {"filter": JWT_FILTER, "path": segments, "value": value}}
