# SPDX-License-Identifier: Apache-2.0
"""Computes the status of each kind from the model, and compares it with the current one."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from ztunnel.controller.l7.model import Model
from ztunnel.controller.l7.object_client import Ref
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.l7_kinds import CA_CERTIFICATES_ANNOTATION
from ztunnel.kube.objects.policy_status import PolicyCondition
from ztunnel.l7.compile import GatewayCompiler
from ztunnel.l7.deployment.settings import CONTROLLER_NAME, INGRESS_CONTROLLER_NAME
from ztunnel.l7.ingress.listeners import ingress_gateways, is_ingress_gateway
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.names import is_waypoint_class
from ztunnel.l7.objects import L7Key, L7Object, l7_object
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.status.backend_tls import PolicyUsers, backend_tls_entries, policy_users
from ztunnel.l7.status.conditions import Condition, has_conditions, render_conditions
from ztunnel.l7.status.entries import (
    ANCESTORS,
    PARENTS,
    Controllers,
    Entry,
    merge_entries,
)
from ztunnel.l7.status.gateway_routes import ListenerViews, routed_services
from ztunnel.l7.status.policies import CONDITION, own_problems, policy_condition, problem_text
from ztunnel.l7.status.routes import (
    STATUS_KINDS,
    route_conditions,
    route_problems,
)
from ztunnel.l7.status.service import WAYPOINT_BOUND, waypoint_bound
from ztunnel.l7.traffic.backend_ca import RefError, has_certificate_refs
from ztunnel.l7.traffic.cluster import INVALID_TLS_POLICY, rule_problems, tls_policy_problems
from ztunnel.l7.traffic.unused import unused_problems
from ztunnel.mesh.model import Service

log = structlog.get_logger()

_BOUND_TYPES = frozenset({WAYPOINT_BOUND, CONDITION})  # of Services and ServiceEntries
TRAFFIC_KINDS = ("DestinationRule", "VirtualService")
_CONTROLLERS = Controllers(CONTROLLER_NAME, INGRESS_CONTROLLER_NAME)
POLICY_KINDS = (*TRAFFIC_KINDS, "RequestAuthentication", "Telemetry")


class Pending(NamedTuple):
    """A status to apply. `force`: it has the entries of other controllers, too."""

    obj: Object
    status: Object
    force: bool
    problems: tuple[str, ...] = ()


class WaypointState(NamedTuple):
    """Of a Gateway. `foreign`: the other controller that runs it."""

    exists: bool
    ready: bool
    foreign: str = ""


class Computers:
    """Thread-safe. `waypoint_state` is called with `namespace/name` of a Gateway."""

    def __init__(
        self,
        model: Model,
        waypoint_state: Callable[[str], WaypointState],
        rejected: Callable[[], Mapping[str, str]],
        ref_errors: Callable[[Ref], Sequence[RefError] | None] = lambda _: (),
    ) -> None:
        """`rejected`: Envoy's message by service.

        `ref_errors`: of a BackendTLSPolicy's references; None if they have not been read yet.
        """
        self._ref_errors = ref_errors
        self._model = model
        self._waypoint_state = waypoint_state
        self._rejected = rejected
        self._routes = RouteIndex()
        self._views = ListenerViews()
        # the gateways by service, and the state of the store to which they belong
        self._routed: tuple[object, Mapping[str, Sequence[str]]] = (None, {})
        self._compilers: dict[str, GatewayCompiler] = {}
        self._compiled: Mapping[L7Key, Sequence[Problem]] = {}
        self._lock = threading.Lock()
        self._by_kind: dict[str, Callable[[Inputs, Object, str], Pending | None]] = {
            "Service": self._service,
            "ServiceEntry": self._service_entry,
            **dict.fromkeys(STATUS_KINDS, self._route),
            **dict.fromkeys(POLICY_KINDS, self._policy),
            "BackendTLSPolicy": self._backend_tls,
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that have a status of ours."""
        return tuple(self._by_kind)

    def pending(self, obj: Object) -> Pending | None:
        """The status to write; None if the object has it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._model.inputs() as inputs:
            return self._by_kind[obj["kind"]](inputs, obj, now)

    def compile(self) -> None:
        """Find the problems of objects that depend on what they apply to."""
        found: dict[L7Key, list[Problem]] = defaultdict(list)
        with self._model.inputs() as inputs:
            gateways = {
                f"{each.namespace}/{each.name}"
                for each in inputs.store.of_kind("Gateway")
                if is_waypoint_class(each.spec.get("gatewayClassName"))
                or is_ingress_gateway(inputs.store, each)
            }
            unused = unused_problems(inputs, ingress_gateways(inputs.store))
            all_problems = dict.fromkeys((*rule_problems(inputs), *unused))
            for gone in self._compilers.keys() - gateways:
                del self._compilers[gone]
            for gateway in sorted(gateways):
                all_problems.update(dict.fromkeys(self._gateway_problems(inputs, gateway)))
        for problem in all_problems:
            found[L7Key(problem.kind, problem.namespace, problem.name)].append(problem)
        self._compiled = found

    def _gateway_problems(self, inputs: Inputs, gateway: str) -> Sequence[Problem]:
        """None after a defect, which must not keep the statuses of others from being written."""
        compiler = self._compilers.setdefault(gateway, GatewayCompiler(gateway))
        try:
            return compiler.compile(inputs).problems
        except Exception as error:
            del self._compilers[gateway]  # the cache may be incomplete
            log.error("gateway not compiled", gateway=gateway, exc_info=error)
            return ()

    def authorization_condition(self, obj: Object) -> PolicyCondition | None:
        """The condition of an AuthorizationPolicy that waypoints enforce; None if nodes do."""
        try:
            policy = l7_object(obj)
        except ValueError:
            return None
        targets = _targets(policy)
        if not targets:
            return None
        with self._model.inputs() as inputs:
            root = inputs.settings.root_namespace
            for target in targets:
                if target.get("kind") not in ("Service", "ServiceEntry"):
                    continue
                found = inputs.mesh.service(f"{policy.namespace}/{target.get('name')}")
                if target["kind"] == "Service" and (found is None or not found.waypoint):
                    return None  # the destination's node enforces it
        condition = policy_condition(own_problems(policy, root))
        return PolicyCondition(condition.status, condition.reason, condition.message)

    def is_enforced(self, policy: L7Object) -> bool:
        """Whether a gateway applies a BackendTLSPolicy."""
        with self._model.inputs() as inputs:
            return bool(self._users(inputs, policy))

    # One method per kind

    def _service(self, inputs: Inputs, obj: Object, now: str) -> Pending | None:
        metadata = obj["metadata"]
        found = inputs.mesh.service(f"{metadata['namespace']}/{metadata['name']}")
        return self._bound(obj, found, now)

    def _service_entry(self, inputs: Inputs, obj: Object, now: str) -> Pending | None:
        """All hosts of an entry have the same waypoint."""
        metadata, spec = obj["metadata"], obj.get("spec")
        hosts = spec.get("hosts") if isinstance(spec, dict) else None
        found = (
            inputs.mesh.service(f"{metadata['namespace']}/{host}")
            for host in (hosts if isinstance(hosts, list) else ())
        )
        service = next((each for each in found if each is not None), None)
        error = self._model.service_entry_error(metadata["namespace"], metadata["name"])
        return self._bound(obj, service, now, error)

    def _bound(
        self, obj: Object, service: Service | None, now: str, error: str = ""
    ) -> Pending | None:
        """`error`: why the object is not in force."""
        conditions: list[Condition] = []
        if service is not None and service.waypoint:
            state = self._waypoint_state(service.waypoint)
            bound = waypoint_bound(
                service.waypoint,
                service.waypoint_error,
                exists=state.exists,
                ready=state.ready,
                foreign=state.foreign,
            )
            conditions += [bound] if bound else []
        if error:
            conditions.append(Condition(CONDITION, False, "Invalid", error))
        before = _conditions(obj)
        wanted = render_conditions(conditions, before, _generation(obj), now)
        ours = {condition.type for condition in conditions}
        is_stale = any(_type(each) in _BOUND_TYPES - ours for each in before)
        if has_conditions(before, wanted) and not is_stale:
            return None
        return Pending(obj, {"conditions": wanted}, False, (error,) if error else ())

    def _route(self, inputs: Inputs, obj: Object, now: str) -> Pending | None:
        metadata = obj["metadata"]
        route = inputs.store.get(obj["kind"], metadata["namespace"], metadata["name"])
        if route is None:
            return None
        with self._lock:
            self._routes.refresh(inputs.store)
            ours = route_conditions(inputs, route, self._routes, self._rejected(), self._views)
            problems = route_problems(inputs, route, self._routes, self._views) if ours else ()
        return _with_parents(obj, ours, problems, now)

    def _policy(self, inputs: Inputs, obj: Object, now: str) -> Pending | None:
        metadata = obj["metadata"]
        policy = inputs.store.get(obj["kind"], metadata["namespace"], metadata["name"])
        if policy is None:
            return None
        own = own_problems(policy, inputs.settings.root_namespace)
        problems = dict.fromkeys((*own, *self._compiled.get(policy.key, ())))
        condition = policy_condition(tuple(problems))
        before = _conditions(obj)
        wanted = render_conditions([condition], before, _generation(obj), now)
        if has_conditions(before, wanted):
            return None
        texts = (problem_text(tuple(problems)),) if problems else ()
        return Pending(obj, {"conditions": wanted}, False, texts)

    def _backend_tls(self, inputs: Inputs, obj: Object, now: str) -> Pending | None:
        metadata, status = obj["metadata"], obj.get("status")
        policy = inputs.store.get(obj["kind"], metadata["namespace"], metadata["name"])
        if policy is None:
            return None
        users = self._users(inputs, policy)
        ref_errors = self._known_ref_errors(policy, users)
        if ref_errors is None:
            return None  # to be published within moments
        others = self._compiled.get(policy.key, ())  # of its targets; perhaps of a former spec
        found = (each for each in others if each.reason != INVALID_TLS_POLICY)
        problems = tuple(dict.fromkeys((*tls_policy_problems(policy), *found)))
        ours = backend_tls_entries(inputs, policy, users, problems, ref_errors)
        current = status.get("ancestors") if isinstance(status, dict) else None
        ancestors = merge_entries(
            ANCESTORS, current, ours, _CONTROLLERS, generation=_generation(obj), now=now
        )
        if ancestors is None:
            return None
        texts = (problem_text(problems),) if problems else ()
        return Pending(obj, {"ancestors": ancestors}, True, texts)

    def _users(self, inputs: Inputs, policy: L7Object) -> PolicyUsers:
        with self._lock:
            self._routes.refresh(inputs.store)
            revision = inputs.store, inputs.store.revision
            if self._routed[0] != revision:
                found = routed_services(inputs, self._routes.routes, self._views)
                self._routed = revision, found
            return policy_users(inputs, policy, self._routed[1])

    def _known_ref_errors(self, policy: L7Object, users: PolicyUsers) -> Sequence[RefError] | None:
        """None if the certificates of a policy that a gateway applies are not published yet."""
        if not has_certificate_refs(policy) or not users:
            return ()
        errors = self._ref_errors(Ref(*policy.key))
        return errors if errors or policy.annotations.get(CA_CERTIFICATES_ANNOTATION) else None


def _with_parents(
    obj: Object, ours: list[Entry], problems: tuple[str, ...], now: str
) -> Pending | None:
    status = obj.get("status")
    current = status.get("parents") if isinstance(status, dict) else None
    parents = merge_entries(
        PARENTS, current, ours, _CONTROLLERS, generation=_generation(obj), now=now
    )
    return None if parents is None else Pending(obj, {"parents": parents}, True, problems)


def _targets(policy: L7Object) -> list[dict[str, Any]]:
    references = policy.spec.get("targetRefs")
    found = list(references) if isinstance(references, list) else []
    return [each for each in (*found, policy.spec.get("targetRef")) if isinstance(each, dict)]


def _conditions(obj: Object) -> list[Any]:
    status = obj.get("status")
    found = status.get("conditions") if isinstance(status, dict) else None
    return found if isinstance(found, list) else []


def _type(condition: object) -> object:
    return condition.get("type") if isinstance(condition, dict) else None


def _generation(obj: Object) -> int:
    return int(obj["metadata"].get("generation") or 0)
