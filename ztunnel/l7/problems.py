# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an object, or not honoured. Nothing is ignored silently."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec


class Severity(StrEnum):
    """How a problem affects traffic."""

    ERROR = "error"  # the object, or the part of it, is replaced by one that denies
    WARNING = "warning"  # enforced differently from what is written
    IGNORED = "ignored"  # the field has no effect


class Problem(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """A problem of one object. `field` is a path such as `spec.rules[0].filters[1]`.

    `reason` is a CamelCase word for a condition, for example `BackendNotFound`.
    """

    kind: str
    namespace: str
    name: str
    field: str = ""
    message: str
    severity: Severity
    reason: str = ""

    def __str__(self) -> str:
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        where = f": {self.field}" if self.field else ""
        return f"{self.kind} {place}{where}: {self.message}"


class Subject(Protocol):
    """What a problem is of: an object, or its key."""

    @property
    def kind(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...


def problem_of(
    subject: Subject,
    *,
    message: str,
    field: str = "",
    severity: Severity = Severity.ERROR,
    reason: str = "",
) -> Problem:
    """A problem of an object; an error unless stated otherwise."""
    return Problem(
        kind=subject.kind,
        namespace=subject.namespace,
        name=subject.name,
        field=field,
        message=message,
        severity=severity,
        reason=reason,
    )
