# SPDX-License-Identifier: Apache-2.0
"""Fields that occur in several of Istio's APIs: hosts, durations, percentages, visibility."""

from __future__ import annotations

import re

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.regex import regex_error
from ztunnel.l7.config import Json
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of

ALL_NAMESPACES = "*"
OWN_NAMESPACE = "."
MAX_DURATION_S = 30 * 86400.0
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:h|ms|us|m|s)){1,5}")
_PART = re.compile(r"([0-9.]+)(h|ms|us|m|s)")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_HOST = re.compile(r"(?:\*|(?:\*\.)?[A-Za-z0-9_]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9_])?)")
_TOKEN = re.compile(r":?[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}")  # RFC 9110, 5.6.2; pseudo-headers


def duration_s(fields: Fields, name: str) -> float | None:
    """A duration such as `1.5s`, `2m` or `100ms` in seconds; None if absent."""
    text = fields.string(name)
    if not text:
        return None
    if not _DURATION.fullmatch(text):
        raise fields.error(name, "a duration such as 1.5s, 2m or 100ms")
    total = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    if total > MAX_DURATION_S:
        raise fields.error(name, "at most 720h")
    return total


def envoy_duration(seconds: float) -> str:
    """The JSON form of google.protobuf.Duration."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def duration(fields: Fields, name: str, *, zero: bool = False) -> str | None:
    """A duration of at least 1 ms in the form of Envoy's API; None if absent.

    `zero`: 0s is valid too.
    """
    seconds = duration_s(fields, name)
    if seconds is None:
        return None
    if seconds < 0.001 and not (zero and seconds == 0):
        raise fields.error(name, "at least 1ms")
    return envoy_duration(seconds)


def integer(fields: Fields, name: str, low: int = 0, high: int = 2**31 - 1) -> int | None:
    """An integer in [low, high]; None if absent."""
    value = fields.raw(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise fields.error(name, f"an integer from {low} to {high}")
    return value


def percent(fields: Fields, name: str) -> Json | None:
    """`{value: 12.5}` as Envoy's FractionalPercent; None if absent."""
    if not fields.has(name):
        return None
    inner = fields.mapping(name)
    inner.allow_only("value")
    return per_million(inner.number("value", 0, 100) or 0.0)


def per_million(value: float) -> Json:
    """A percentage as Envoy's FractionalPercent."""
    return {"numerator": round(value * 10_000), "denominator": "MILLION"}


def header_name(fields: Fields, name: str) -> str:
    """The name of a header; empty if absent."""
    text = fields.string(name)
    if text and not _TOKEN.fullmatch(text):
        raise fields.error(name, "the name of a header")
    return text.lower()


def string_match(fields: Fields, *, ignore_case: bool = False) -> Json:
    """Istio's StringMatch (exact, prefix or regex) as Envoy's StringMatcher."""
    fields.allow_only("exact", "prefix", "regex")
    given = [name for name in ("exact", "prefix", "regex") if fields.has(name)]
    if len(given) != 1:
        raise fields.invalid("has none or several of exact, prefix, regex")
    (kind,) = given
    text = fields.string(kind)
    if kind == "regex":
        if error := regex_error(text) or ("" if text else "it is empty"):
            raise fields.error("regex", f"a regular expression of RE2 ({error})")
        return {"safe_regex": {"regex": text}}
    if not text and kind == "prefix":
        return {"safe_regex": {"regex": ".*"}}  # Envoy rejects an empty prefix
    return {kind: text} | ({"ignore_case": True} if ignore_case else {})


def host_name(fields: Fields, name: str, namespace: str, cluster_domain: str) -> str:
    """A host, with short names completed by the object's namespace, as in Istio."""
    text = fields.string(name)
    if not _HOST.fullmatch(text):
        raise fields.error(name, "a host")
    return complete_host(text, namespace, cluster_domain)


def complete_host(host: str, namespace: str, cluster_domain: str) -> str:
    """`web` means `web.<namespace>.svc.<cluster domain>`; names with a dot are complete."""
    if "." in host or host == "*":
        return host.lower()
    return f"{host.lower()}.{namespace}.svc.{cluster_domain}"


def host_matches(pattern: str, host: str) -> bool:
    """Whether a host, which may start with `*`, covers a host name."""
    if pattern.startswith("*"):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host


def is_exported(export_to: tuple[str, ...], own: str, namespace: str) -> bool:
    """Whether an object of the namespace `own` is visible to another one."""
    if not export_to or ALL_NAMESPACES in export_to or namespace in export_to:
        return True
    return OWN_NAMESPACE in export_to and own == namespace


class Reporter:
    """Collects the problems of one object."""

    def __init__(self, obj: L7Object) -> None:
        self._object = obj
        self.problems: list[Problem] = []

    def report(
        self, severity: Severity, path: str, message: str, reason: str = "UnsupportedValue"
    ) -> None:
        """Add a problem."""
        self.problems.append(
            problem_of(
                self._object,
                field=path.rstrip("."),
                message=message,
                severity=severity,
                reason=reason,
            )
        )

    def ignored(
        self, fields: Fields, *names: str, why: str = "waypoints do not support it"
    ) -> None:
        """Report each of the fields that is present as without effect."""
        for name in names:
            if fields.has(name):
                self.report(Severity.IGNORED, fields.path(name), why)
