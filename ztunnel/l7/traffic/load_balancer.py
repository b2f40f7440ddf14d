# SPDX-License-Identifier: Apache-2.0
"""DestinationRule's loadBalancer (without locality) as fields of a cluster."""

from __future__ import annotations

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.istio.values import Reporter, duration, header_name, integer
from ztunnel.l7.config import Json
from ztunnel.l7.problems import Severity
from ztunnel.l7.traffic.connection_pool import HTTP_OPTIONS

_POLICIES = {
    "": "LEAST_REQUEST",  # Istio's default
    "UNSPECIFIED": "LEAST_REQUEST",
    "LEAST_REQUEST": "LEAST_REQUEST",
    "LEAST_CONN": "LEAST_REQUEST",  # the older name
    "ROUND_ROBIN": "ROUND_ROBIN",
    "RANDOM": "RANDOM",
}
_MAX_RING = 8 * 2**20  # Envoy's limit of the ring's size
_MAX_TABLE = 5_000_011  # Envoy's limit of Maglev's table
_HASHES = ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName")
DEFAULT: Json = {"lb_policy": "LEAST_REQUEST"}


def balancer_fields(fields: Fields, reporter: Reporter, *, is_http: bool) -> Json:
    """Return fields of the cluster. Raises TranslateError."""
    fields.allow_only(
        *("simple", "consistentHash", "localityLbSetting", "warmup", "warmupDurationSecs")
    )
    if fields.has("consistentHash"):
        if fields.has("simple"):
            raise fields.error("consistentHash", "either simple or consistentHash")
        reporter.ignored(fields, "warmup", "warmupDurationSecs", why="needs no consistent hash")
        return _consistent_hash(fields.mapping("consistentHash"), reporter, is_http=is_http)
    name = fields.string("simple")
    if name == "PASSTHROUGH":
        reporter.report(
            Severity.WARNING,
            fields.path("simple"),
            "requests are balanced over the service's endpoints (LEAST_REQUEST)",
        )
        name = ""
    if name not in _POLICIES:
        raise fields.error("simple", ", ".join(filter(None, _POLICIES)))
    policy = _POLICIES[name]
    slow_start = _slow_start(fields)
    if slow_start and policy == "RANDOM":
        raise fields.error("warmup", "LEAST_REQUEST or ROUND_ROBIN")
    config = f"{policy.lower()}_lb_config"
    return {"lb_policy": policy, **({config: slow_start} if slow_start else {})}


def _slow_start(fields: Fields) -> Json:
    warmup = fields.mapping("warmup")
    warmup.allow_only("duration", "minimumPercent", "aggression")
    window = duration(warmup, "duration") or duration(fields, "warmupDurationSecs")
    if not window:
        return {}
    config: Json = {"slow_start_window": window}
    if (least := warmup.number("minimumPercent", 0, 100)) is not None:
        config["min_weight_percent"] = {"value": least}
    if (aggression := warmup.number("aggression", 1, 1000)) is not None:
        config["aggression"] = {"default_value": aggression, "runtime_key": "warmup.aggression"}
    return {"slow_start_config": config}


def _consistent_hash(fields: Fields, reporter: Reporter, *, is_http: bool) -> Json:
    fields.allow_only(*_HASHES, "ringHash", "maglev", "minimumRingSize")
    policy = _hash_policy(fields)
    found: Json = {}
    if fields.has("maglev"):
        maglev = fields.mapping("maglev")
        maglev.allow_only("tableSize")
        size = integer(maglev, "tableSize", 0, _MAX_TABLE)
        if size and not _is_prime(size):
            raise maglev.error("tableSize", "a prime number")
        found = {"lb_policy": "MAGLEV"}
        if size:
            found["maglev_lb_config"] = {"table_size": size}
    else:
        ring = fields.mapping("ringHash")
        ring.allow_only("minimumRingSize")
        size = integer(ring, "minimumRingSize", 0, _MAX_RING) or integer(
            fields, "minimumRingSize", 0, _MAX_RING
        )
        found = {"lb_policy": "RING_HASH"}
        # Istio's default of the ring's size is 1024, as Envoy's
        if size:
            found["ring_hash_lb_config"] = {"minimum_ring_size": size}
    if is_http:
        found["typed_extension_protocol_options"] = {HTTP_OPTIONS: {"hash_policy": [policy]}}
        return found
    reporter.report(
        Severity.WARNING,
        fields.path("").rstrip("."),
        "connections of TCP are not hashed: the port's protocol is not HTTP",
    )
    return DEFAULT


def _hash_policy(fields: Fields) -> Json:
    given = [name for name in _HASHES if fields.has(name)]
    if len(given) != 1:
        raise fields.invalid(f"has none or several of {', '.join(_HASHES)}")
    (kind,) = given
    if kind == "httpHeaderName":
        if not (name := header_name(fields, kind)):
            raise fields.error(kind, "the name of a header")
        return {"header": {"header_name": name}}
    if kind == "httpQueryParameterName":
        if not fields.string(kind):
            raise fields.error(kind, "a name")
        return {"query_parameter": {"name": fields.string(kind)}}
    if kind == "useSourceIp":
        if not fields.boolean(kind):
            raise fields.error(kind, "true")
        return {"connection_properties": {"source_ip": True}}
    cookie = fields.mapping("httpCookie")
    cookie.allow_only("name", "path", "ttl", "attributes")
    if not header_name(cookie, "name"):
        raise cookie.error("name", "a name")
    found: Json = {"name": cookie.string("name")}
    if path := cookie.string("path"):
        found["path"] = path
    if (ttl := duration(cookie, "ttl", zero=True)) is not None:
        found["ttl"] = ttl
    return {"cookie": found}


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))
