# SPDX-License-Identifier: Apache-2.0
"""Policies as every node knows them: who may connect to whom, and who must be encrypted.

Plain frozen values in one normal form, made by `ztunnel.kube.objects.policies`, decided on by
`mesh.authorize`. What is refused is a value too, one that lets nothing in
(docs/concepts/policy.md), so that deciding needs no special cases. Source of the
meanings: Istio's security.istio.io/v1 reference.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Action(StrEnum):
    """What a policy does with what it matches."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class Attribute(StrEnum):
    """What a term speaks of. The three of the identity are absent when none was proven."""

    PRINCIPAL = "source.principal"  # <trust domain>/ns/<namespace>/sa/<account>
    NAMESPACE = "source.namespace"  # that of the identity, not of the address
    ACCOUNT = "source.serviceAccount"  # <namespace>/<account>
    SOURCE_IP = "source.ip"
    DESTINATION_IP = "destination.ip"
    DESTINATION_PORT = "destination.port"


ADDRESSES = frozenset({Attribute.SOURCE_IP, Attribute.DESTINATION_IP})


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attribute: it is one of `values`, if there are any, and none of `excluded`.

    Texts are exact, or `*` (any, but there), `begin*`, `*end`; addresses are networks in canonical
    text, `10.0.0.0/8`; ports are decimal.
    """

    attribute: Attribute
    values: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


Clause = tuple[Terms, ...]  # all hold: one `source`, one `operation`, one `when`
Group = tuple[Clause, ...]  # any holds: all of `from`, all of `to`


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """`rules[number]`: every group holds. Without groups it matches all; `never` says why it
    matches nothing at all."""

    number: int
    groups: tuple[Group, ...] = ()
    never: str = ""


class Selection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Workloads of a namespace, empty for all, that have all `labels`; or the one with `uid`."""

    namespace: str = ""
    labels: dict[str, str] = {}
    uid: str = ""


class AuthorizationPolicy(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """`selections`: of which any makes it apply. `refused`: why it is not what was written but
    the safe thing instead. `warnings`: what of it is not as written, though in force."""

    namespace: str
    name: str
    action: Action = Action.ALLOW
    selections: tuple[Selection, ...] = ()
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    refused: str = ""
    ignored: str = ""  # why it has no effect on this node's traffic at all
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What updates, removals and logs name it by."""
        return f"AuthorizationPolicy/{self.namespace}/{self.name}"


class MtlsMode(StrEnum):
    """Istio's modes. A port or a level that is UNSET asks the one above it."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"  # to a node's proxy the same as PERMISSIVE
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Level(StrEnum):
    """Where a PeerAuthentication stands: the narrower goes before the wider."""

    WORKLOAD = "workload"
    NAMESPACE = "namespace"
    MESH = "mesh"


class PeerAuthentication(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Whether plaintext is let in. Of several at one level the oldest counts; a refused one, which
    is STRICT, goes before them. `created` is RFC 3339 text, empty when not known."""

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
        """What updates, removals and logs name it by."""
        return f"PeerAuthentication/{self.namespace}/{self.name}"

    @property
    def rank(self) -> tuple[bool, bool, str, str]:
        """The first of a level counts: the refused, those of the workload's own namespace, the
        oldest, by name."""
        return (not self.refused, not self.selection.namespace, self.created, self.key)


Policy = AuthorizationPolicy | PeerAuthentication
