# SPDX-License-Identifier: Apache-2.0
"""The condition ZtunnelAccepted of Istio's objects that waypoints read.

True   Accepted           in force as written, where it applies
True   UnsupportedValue   in force, but not all of it as written
False  Invalid            not in force; the message states what is instead
False  RejectedByProxy    Envoy rejects it: the previous configuration stays in force
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ztunnel.l7.api.authorization_policy import parse_authorization_policy
from ztunnel.l7.api.request_authentication import parse_request_authentication
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.status.conditions import Condition

CONDITION = "ZtunnelAccepted"  # as Istio's ambient mode
_MAX_PROBLEMS = 8  # in a message

_PARSERS: dict[str, Callable[[L7Object, str], Sequence[Problem]]] = {
    "AuthorizationPolicy": lambda obj, root: parse_authorization_policy(obj, root).problems,
    "RequestAuthentication": lambda obj, root: parse_request_authentication(obj, root).problems,
}


def own_problems(obj: L7Object, root_namespace: str) -> tuple[Problem, ...]:
    """Return what is wrong with an object by itself, for kinds whose parser reports it."""
    parser = _PARSERS.get(obj.kind)
    return tuple(parser(obj, root_namespace)) if parser is not None else ()


def policy_condition(problems: Sequence[Problem]) -> Condition:
    """Return the condition of an object with these problems."""
    errors = [each for each in problems if each.severity is Severity.ERROR]
    if errors:
        return Condition(CONDITION, False, "Invalid", problem_text(errors))
    if problems:
        return Condition(CONDITION, True, "UnsupportedValue", problem_text(problems))
    return Condition(CONDITION, True, "Accepted", "in force at waypoints")


def problem_text(problems: Sequence[Problem]) -> str:
    """Problems as one line."""
    lines = [f"{each.field}: {each.message}" if each.field else each.message for each in problems]
    unique = list(dict.fromkeys(lines))
    more = f"; and {len(unique) - _MAX_PROBLEMS} more" if len(unique) > _MAX_PROBLEMS else ""
    return "; ".join(unique[:_MAX_PROBLEMS]) + more
