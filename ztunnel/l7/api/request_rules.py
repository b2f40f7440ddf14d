# SPDX-License-Identifier: Apache-2.0
"""The rules of HTTPRoute and GRPCRoute in one form: which requests match, and what happens to them.

A rule that cannot be honoured has an `error`. Requests that match it get a 500 response.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ztunnel.l7.api.route_fields import BackendRef, HeaderModifier, Mirror, ParentRef, ValueMatch
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem

Rank = tuple[int, ...]


class PathKind(StrEnum):
    """How a path is compared. PREFIX compares whole segments."""

    EXACT = "Exact"
    PREFIX = "PathPrefix"
    REGEX = "RegularExpression"


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions that a request must all meet.

    `rank` orders matches of one kind of route: the greater one is more specific.
    """

    path_kind: PathKind = PathKind.PREFIX
    path: str = "/"
    method: str = ""
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()
    rank: Rank = ()


ANY_REQUEST = Match(rank=(0, 0, 0, 0, 0))  # less specific than all others


class PathChange(msgspec.Struct, frozen=True):
    """Replaces the path, or only the prefix that has matched (`prefix`)."""

    value: str
    prefix: bool


class Redirect(msgspec.Struct, frozen=True, kw_only=True):
    """Answers with a redirect. Empty and None: as in the request."""

    scheme: str = ""
    hostname: str = ""
    path: PathChange | None = None
    port: int | None = None
    status: int = 302


class Rewrite(msgspec.Struct, frozen=True, kw_only=True):
    """Changes what the backend receives."""

    hostname: str = ""
    path: PathChange | None = None


class Cors(msgspec.Struct, frozen=True, kw_only=True):
    """Answers preflight requests, and permits browsers to read responses."""

    origins: tuple[str, ...] = ()
    credentials: bool = False
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age_s: int = 5


RouteFilter = HeaderModifier | Mirror | Redirect | Rewrite | Cors


class Backend(msgspec.Struct, frozen=True):
    """A backend with its own filters; `error`: why the filters cannot be honoured."""

    ref: BackendRef
    filters: tuple[HeaderModifier, ...] = ()
    error: str = ""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When and how often a request is sent again. None: the default of the mesh."""

    codes: tuple[int, ...] = ()
    attempts: int | None = None
    backoff_s: float | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Sends the requests of a session to the endpoint of the first one."""

    name: str
    header: bool = False
    ttl_s: int | None = None  # of the cookie; None for a session cookie


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule. Durations are in seconds; None: no limit by the rule, 0: no limit."""

    where: str
    name: str = ""
    matches: tuple[Match, ...] = ()
    filters: tuple[RouteFilter, ...] = ()
    backends: tuple[Backend, ...] = ()
    request_timeout_s: float | None = None
    backend_timeout_s: float | None = None
    retry: Retry | None = None
    session: Session | None = None
    error: str = ""


class RequestRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed HTTPRoute or GRPCRoute. `hostnames`: exact or `*.suffix`; empty for all."""

    obj: L7Object
    parents: tuple[ParentRef, ...]
    rules: tuple[Rule, ...]
    hostnames: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def match_rank(path_kind: PathKind, path: str, method: str, headers: int, query: int) -> Rank:
    """Return the rank of a match of an HTTPRoute, as Gateway API and Istio order them.

    An exact path, then the longest prefix, then a method, the most headers, the most query
    parameters. A regular expression ranks below prefixes, as in Istio, but above the prefix `/`.
    """
    ranks = {PathKind.EXACT: 3, PathKind.PREFIX: 2, PathKind.REGEX: 1}
    kind = 0 if (path_kind, path) == (PathKind.PREFIX, "/") else ranks[path_kind]
    return (kind, len(path), int(bool(method)), headers, query)
