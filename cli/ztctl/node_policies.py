# SPDX-License-Identifier: Apache-2.0
"""What nodes report about the AuthorizationPolicies that they enforce."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ztunnel.kube.objects.fields import TranslateError
from ztunnel.kube.objects.policies import read_authorization_policy
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of


def node_problems(obj: L7Object, root_namespace: str) -> Iterator[Problem]:
    """Yield the problems of a policy, by the parser of the nodes."""
    raw: dict[str, Any] = {
        "apiVersion": obj.api_version,
        "kind": obj.kind,
        "metadata": {
            "namespace": obj.namespace,
            "name": obj.name,
            "annotations": dict(obj.annotations),
        },
        "spec": obj.spec,
    }
    try:
        policy = read_authorization_policy(raw, root_namespace).policy
    except TranslateError as error:
        yield _problem(obj, str(error), Severity.ERROR, "Invalid")
        return
    if policy.refused:
        message = f"rejected, fails closed: {policy.refused}"
        yield _problem(obj, message, Severity.ERROR, "Invalid")
    if policy.ignored:
        yield _problem(obj, policy.ignored, Severity.IGNORED, "NoEffect")
    for warning in policy.warnings:
        yield _problem(obj, warning, Severity.WARNING, "UnsupportedValue")


def _problem(obj: L7Object, message: str, severity: Severity, reason: str) -> Problem:
    return problem_of(
        obj,
        message=message,
        severity=severity,
        reason=reason,
    )
