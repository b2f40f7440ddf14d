# SPDX-License-Identifier: Apache-2.0
"""The policy model: which workloads may connect, and which connections must use mTLS.

Plain frozen values in one normal form, created by `ztunnel.kube.objects.policies` and evaluated by
`mesh.policy.engine`. A rejected policy is a value that denies (fail closed), so the evaluation has
no special cases. Source of the semantics: Istio's security.istio.io/v1 reference.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Action(StrEnum):
    """The action of a policy on matching requests."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class Attribute(StrEnum):
    """An attribute of a request. The three identity attributes are absent without mTLS."""

    PRINCIPAL = "source.principal"  # <trust domain>/ns/<namespace>/sa/<account>
    NAMESPACE = "source.namespace"  # of the identity, not of the address
    ACCOUNT = "source.serviceAccount"  # <namespace>/<account>
    SOURCE_IP = "source.ip"
    DESTINATION_IP = "destination.ip"
    DESTINATION_PORT = "destination.port"


ADDRESSES = frozenset({Attribute.SOURCE_IP, Attribute.DESTINATION_IP})


class MatchTerms(msgspec.Struct, frozen=True, omit_defaults=True):
    """Conditions on one attribute: one of `values` (if any) and none of `excluded` match.

    Strings match exactly, or as `*` (present), `prefix*`, `*suffix`; addresses are CIDRs in
    canonical form, `10.0.0.0/8`; ports are decimal.
    """

    attribute: Attribute
    values: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


Clause = tuple[MatchTerms, ...]  # AND: one `source`, one `operation`, or one `when`
Group = tuple[Clause, ...]  # OR: all of `from`, or all of `to`


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """`rules[number]`: matches if every group matches, or if there are none.

    `never_matches` is the reason why the rule matches nothing; empty otherwise.
    """

    number: int
    groups: tuple[Group, ...] = ()
    never_matches: str = ""


class Selection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Workloads of a namespace (empty: all) with all `labels`; or the workload with `uid`."""

    namespace: str = ""
    labels: dict[str, str] = {}
    uid: str = ""


class AuthorizationPolicy(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """An AuthorizationPolicy; it applies to workloads that any of `selections` matches.

    `refused`: why the policy is invalid and denies instead. `ignored`: why it has no effect on
    this node's traffic. `at_waypoint`: it has none because waypoints enforce it. `warnings`: which
    parts are enforced differently from what is written.
    """

    namespace: str
    name: str
    action: Action = Action.ALLOW
    selections: tuple[Selection, ...] = ()
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    refused: str = ""
    ignored: str = ""
    at_waypoint: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key in updates, removals and logs."""
        return f"AuthorizationPolicy/{self.namespace}/{self.name}"


class MtlsMode(StrEnum):
    """Istio's mTLS modes. UNSET inherits from the next wider level."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"  # equivalent to PERMISSIVE for a node proxy
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Level(StrEnum):
    """The scope of a PeerAuthentication; a narrower scope takes precedence."""

    WORKLOAD = "workload"
    NAMESPACE = "namespace"
    MESH = "mesh"


class PeerAuthentication(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """A PeerAuthentication: whether plaintext is accepted.

    Of several at one level, the oldest applies; a `refused` one, which is STRICT, takes precedence.
    `created` is RFC 3339 text, empty if unknown.
    """

    namespace: str
    name: str
    level: Level
    selection: Selection
    mode: MtlsMode = MtlsMode.UNSET
    ports: dict[int, MtlsMode] = {}
    created: str = ""
    refused: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key in updates, removals and logs."""
        return f"PeerAuthentication/{self.namespace}/{self.name}"

    @property
    def rank(self) -> tuple[bool, bool, str, str]:
        """Sort key within a level: refused first, own namespace first, oldest first, by name."""
        return (not self.refused, not self.selection.namespace, self.created, self.key)


Policy = AuthorizationPolicy | PeerAuthentication
