# SPDX-License-Identifier: Apache-2.0
"""Writes the status of ingress gateways and of their ListenerSets, if it differs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from ztunnel.controller.l7.model import Model
from ztunnel.controller.l7.object_client import ObjectClient, Ref, for_all, mapping
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.objects import L7Object
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.status.conditions import Condition, has_conditions
from ztunnel.l7.status.facts import GatewayFacts
from ztunnel.l7.status.ingress import OPTIONAL_CONDITIONS, SetStatus, ingress_status

LISTENER_SET = "ListenerSet"
_EVENT_REASONS = frozenset(
    {"InvalidParameters", "UnsupportedAddress", "ListenersNotValid", "AddressNotUsable"}
)


class IngressStatuses:
    """Thread-safe for different Gateways."""

    def __init__(self, client: ObjectClient, watches: Watches, model: Model) -> None:
        self._client = client
        self._watches = watches
        self._model = model
        self._routes = RouteIndex()  # used while the model is locked

    def write(self, obj: Object, gateway: L7Object, facts: GatewayFacts) -> None:
        """Write the status of a Gateway, read as `obj`, and of its ListenerSets. Raises ApiError.

        An object that has changed in between is left to the reconciliation of the change.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._model.inputs() as inputs:
            self._routes.refresh(inputs.store)
            found = ingress_status(inputs.store, gateway, facts, self._routes)
        self._apply(obj, found.of_gateway(mapping(obj.get("status")), now))
        self._emit(obj, found.conditions)

        def write_set(each: SetStatus) -> None:
            ref = Ref(LISTENER_SET, each.obj.namespace, each.obj.name)
            current = self._watches.of(ref)
            if current is not None:
                self._apply(current, found.of_set(each, mapping(current.get("status")), now))
                self._emit(current, each.conditions)

        for_all(found.sets, write_set)

    def _apply(self, obj: Object, status: Object) -> None:
        if not _is_same(status, mapping(obj.get("status"))):
            self._client.apply_status(obj, status, force=True)

    def _emit(self, obj: Object, conditions: Iterable[Condition]) -> None:
        for each in conditions:
            if each.reason in _EVENT_REASONS:
                self._client.emit_event(obj, "MeshGatewayInvalid", each.message)


def _is_same(status: Object, before: Object) -> bool:
    known = {each.get("name"): each for each in before.get("listeners") or ()}
    return (
        has_conditions(before.get("conditions"), status["conditions"])
        and not _stale(before.get("conditions") or (), status["conditions"])
        and status.get("addresses", []) == (before.get("addresses") or [])
        and status.get("attachedListenerSets", 0) == before.get("attachedListenerSets", 0)
        and known.keys() == {each["name"] for each in status["listeners"]}
        and all(_is_same_listener(each, known[each["name"]]) for each in status["listeners"])
    )


def _stale(before: Iterable[Object], wanted: Iterable[Object]) -> set[str]:
    """The conditions to remove; those of others are not ours to judge."""
    known = {str(each.get("type")) for each in before}
    return (known & OPTIONAL_CONDITIONS) - {each["type"] for each in wanted}


def _is_same_listener(listener: Object, before: Object) -> bool:
    return (
        listener["attachedRoutes"] == before.get("attachedRoutes")
        and listener["supportedKinds"] == (before.get("supportedKinds") or [])
        and has_conditions(before.get("conditions"), listener["conditions"])
    )
