# SPDX-License-Identifier: Apache-2.0
"""The result of a compilation, and the parts that its modules contribute.

Resources are plain dicts in the proto3 JSON form of Envoy's API. They may be shared between
configurations, so they are never modified after compilation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ztunnel.l7.names import TypeUrl
from ztunnel.l7.problems import Problem

Json = dict[str, Any]


@dataclass(frozen=True)
class GatewayConfig:
    """All resources of one gateway, by type and name."""

    resources: dict[TypeUrl, dict[str, Json]]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class ClusterFields:
    """Fields that traffic policies add to a cluster."""

    fields: Json = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Filters:
    """Filters of a chain that enforce policies, in order, and the clusters that they call."""

    http: tuple[Json, ...] = ()
    network: tuple[Json, ...] = ()
    clusters: tuple[Json, ...] = ()
    problems: tuple[Problem, ...] = ()
