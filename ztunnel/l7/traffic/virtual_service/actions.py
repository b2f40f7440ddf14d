# SPDX-License-Identifier: Apache-2.0
"""Redirects, rewrites, retries, faults, CORS and direct responses of a VirtualService."""

from __future__ import annotations

import re

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.istio.values import (
    duration,
    integer,
    per_million,
    percent,
    string_match,
)
from ztunnel.l7.api.regex import regex_error, regex_groups
from ztunnel.l7.config import Json
from ztunnel.l7.traffic.retries import DEFAULT_RETRY

_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
_REDIRECTS = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
MAX_BODY_BYTES = 4096  # Envoy's default of max_direct_response_body_size_bytes
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,2048}")
_HOST = re.compile(r"[A-Za-z0-9_\[][-A-Za-z0-9._:\[\]]{0,252}")
_SUBSTITUTION = re.compile(r"(?:[^\\\x00-\x1f\x7f]|\\[0-9\\]){0,2048}")
_RETRY_ON = re.compile(r"[a-z0-9-]{1,64}")
# google.golang.org/grpc/codes, in order
_GRPC_CODES = """
OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED
RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE
DATA_LOSS UNAUTHENTICATED
"""
_GRPC_STATUS = {name: number for number, name in enumerate(_GRPC_CODES.split())}


def redirect_action(redirect: Fields, port: int) -> Json:
    """Return a RedirectAction. Raises TranslateError."""
    redirect.allow_only("uri", "authority", "port", "derivePort", "scheme", "redirectCode")
    code = integer(redirect, "redirectCode") or 301
    if code not in _REDIRECTS:
        raise redirect.error("redirectCode", ", ".join(map(str, _REDIRECTS)))
    action: Json = {"response_code": _REDIRECTS[code]}
    if redirect.has("uri"):
        action["path_redirect"] = _text(redirect, "uri", _PRINTABLE, "a path")
    if redirect.has("authority"):
        action["host_redirect"] = _text(redirect, "authority", _HOST, "a host")
    if redirect.has("scheme"):
        if redirect.string("scheme") not in ("http", "https"):
            raise redirect.error("scheme", "http or https")
        action["scheme_redirect"] = redirect.string("scheme")
    derive = redirect.string("derivePort") or "FROM_PROTOCOL_DEFAULT"
    if derive not in ("FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"):
        raise redirect.error("derivePort", "FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT")
    if number := redirect.port("port"):
        action["port_redirect"] = number
    elif redirect.has("derivePort") and derive == "FROM_REQUEST_PORT":
        action["port_redirect"] = port
    return action


def direct_response(response: Fields) -> Json:
    """Return a DirectResponseAction. Raises TranslateError."""
    response.allow_only("status", "body")
    status = integer(response, "status", 200, 599)
    if status is None:
        raise response.error("status", "a status code from 200 to 599")
    body = response.mapping("body")
    body.allow_only("string", "bytes")
    if body.has("bytes"):
        raise body.error("bytes", "none: only body.string is supported")
    text = body.string("string")
    if len(text.encode()) > MAX_BODY_BYTES:
        raise body.error("string", f"at most {MAX_BODY_BYTES} bytes")
    return {"status": status} | ({"body": {"inline_string": text}} if text else {})


def rewrite_fields(rewrite: Fields) -> Json:
    """Return fields of a RouteAction. Raises TranslateError."""
    rewrite.allow_only("uri", "authority", "uriRegexRewrite")
    fields: Json = {}
    if rewrite.has("authority"):
        fields["host_rewrite_literal"] = _text(rewrite, "authority", _HOST, "a host")
    if rewrite.has("uriRegexRewrite"):
        if rewrite.has("uri"):
            raise rewrite.error("uri", "either uri or uriRegexRewrite")
        fields["regex_rewrite"] = _regex_rewrite(rewrite.mapping("uriRegexRewrite"))
    elif rewrite.has("uri"):
        fields["prefix_rewrite"] = _text(rewrite, "uri", _PRINTABLE, "a path")
    return fields


def retry_policy(retries: Fields) -> Json:
    """Return fields of a RouteAction. Raises TranslateError."""
    retries.allow_only(
        *("attempts", "perTryTimeout", "retryOn", "retryRemoteLocalities"),
        *("retryIgnorePreviousHosts", "backoff"),
    )
    attempts = integer(retries, "attempts", 0, 1000)
    if attempts == 0:
        return {}
    policy = {**DEFAULT_RETRY, "num_retries": 2 if attempts is None else attempts}
    if not retries.boolean("retryIgnorePreviousHosts", True):
        del policy["retry_host_predicate"], policy["host_selection_retry_max_attempts"]
    conditions = [part.strip() for part in retries.string("retryOn").split(",") if part.strip()]
    if conditions:
        policy |= _conditions(retries, conditions)
    if timeout := duration(retries, "perTryTimeout", zero=True):
        policy["per_try_timeout"] = timeout
    if backoff := duration(retries, "backoff"):
        policy["retry_back_off"] = {"base_interval": backoff}
    if retries.boolean("retryRemoteLocalities"):
        kind = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
        policy["retry_priority"] = {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {"@type": f"type.googleapis.com/{kind}", "update_frequency": 2},
        }
    return {"retry_policy": policy}


def fault_policy(fault: Fields) -> Json:
    """Return the configuration of the fault filter for a route. Raises TranslateError."""
    fault.allow_only("delay", "abort")
    policy: Json = {"@type": f"{_FILTERS}.fault.v3.HTTPFault"}
    if fault.has("delay"):
        delay = fault.mapping("delay")
        delay.allow_only("percentage", "percent", "fixedDelay")
        fixed = duration(delay, "fixedDelay")
        if fixed is None:
            raise delay.error("fixedDelay", "a duration")
        policy["delay"] = {
            "fixed_delay": fixed,
            "percentage": _share(delay, "percent", "percentage"),
        }
    if fault.has("abort"):
        policy["abort"] = _abort(fault.mapping("abort"))
    return policy


def mirror_share(fields: Fields, old: str, name: str) -> Json:
    """The share of requests that are mirrored, as fields of a RequestMirrorPolicy."""
    return {"runtime_fraction": {"default_value": _share(fields, old, name)}}


def cors_policy(cors: Fields) -> Json:
    """Return the configuration of the CORS filter for a route. Raises TranslateError."""
    cors.allow_only(
        *("allowOrigins", "allowOrigin", "allowMethods", "allowHeaders", "exposeHeaders"),
        *("maxAge", "allowCredentials", "unmatchedPreflights"),
    )
    origins = [string_match(one) for one in cors.mappings("allowOrigins")]
    origins += [{"exact": one} for one in cors.strings("allowOrigin")]
    unmatched = cors.string("unmatchedPreflights") or "FORWARD"
    if unmatched not in ("UNSPECIFIED", "FORWARD", "IGNORE"):
        raise cors.error("unmatchedPreflights", "FORWARD or IGNORE")
    policy: Json = {
        "@type": f"{_FILTERS}.cors.v3.CorsPolicy",
        "allow_origin_string_match": origins,
        "allow_credentials": cors.boolean("allowCredentials"),
        "forward_not_matching_preflights": unmatched != "IGNORE",
    }
    for ours, theirs in (
        ("allowMethods", "allow_methods"),
        ("allowHeaders", "allow_headers"),
        ("exposeHeaders", "expose_headers"),
    ):
        if values := cors.strings(ours):
            policy[theirs] = ",".join(values)
    if age := duration(cors, "maxAge"):
        policy["max_age"] = str(round(float(age.removesuffix("s"))))  # seconds
    return policy


def _abort(abort: Fields) -> Json:
    abort.allow_only("percentage", "httpStatus", "grpcStatus")
    found: Json = {"percentage": _share(abort, "", "percentage")}
    if abort.has("grpcStatus"):
        name = abort.string("grpcStatus")
        if name not in _GRPC_STATUS or abort.has("httpStatus"):
            raise abort.error("grpcStatus", "the name of a status, without httpStatus")
        return found | {"grpc_status": _GRPC_STATUS[name]}
    status = integer(abort, "httpStatus", 200, 599)
    if status is None:
        raise abort.error("httpStatus", "a status code from 200 to 599")
    return found | {"http_status": status}


def _share(fields: Fields, old: str, name: str) -> Json:
    """The percentage `name`, or the older integer `old`; all requests if neither is present."""
    share = percent(fields, name)
    if share is not None:
        return share
    whole = integer(fields, old, 0, 100) if old else None
    return per_million(100 if whole is None else whole)


def _conditions(retries: Fields, conditions: list[str]) -> Json:
    """Istio's retryOn contains conditions of Envoy and status codes."""
    codes = [int(one) for one in conditions if one.isascii() and one.isdigit() and len(one) < 4]
    names = [one for one in conditions if not one.isdigit()]
    if not all(_RETRY_ON.fullmatch(one) for one in names) or not all(c > 99 for c in codes):
        raise retries.error("retryOn", "conditions of Envoy and status codes")
    if not codes:
        return {"retry_on": ",".join(names)}
    names = [*dict.fromkeys([*names, "retriable-status-codes"])]
    return {"retry_on": ",".join(names), "retriable_status_codes": codes}


def _regex_rewrite(rewrite: Fields) -> Json:
    rewrite.allow_only("match", "rewrite")
    pattern, substitution = rewrite.string("match"), rewrite.string("rewrite")
    if error := regex_error(pattern) or ("" if pattern else "it is empty"):
        raise rewrite.error("match", f"a regular expression of RE2 ({error})")
    groups = [int(number) for number in re.findall(r"\\([0-9])", substitution)]
    is_valid = _SUBSTITUTION.fullmatch(substitution) is not None
    if not is_valid or max(groups, default=0) > regex_groups(pattern):
        raise rewrite.error("rewrite", "a text with groups of the expression")
    return {"pattern": {"regex": pattern}, "substitution": substitution}


def _text(fields: Fields, name: str, pattern: re.Pattern[str], want: str) -> str:
    text = fields.string(name)
    if not pattern.fullmatch(text):
        raise fields.error(name, want)
    return text
