# SPDX-License-Identifier: Apache-2.0
"""Policies for people: what there is, whom it takes, and what would become of a connection.

Answers are plain data (see `agent.admin`); what is asked wrongly is answered with `error`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ztunnel.agent.api.admin_server import Json
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.address import AddressError, canonical, family, parse_authority
from ztunnel.mesh.model import SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.engine import PolicyEngine, display_name
from ztunnel.mesh.policy.model import AuthorizationPolicy, Policy
from ztunnel.mesh.policy.rule_index import AuthzRequest, RequestAttributes, RuleIndex
from ztunnel.mesh.ports import RESERVED

MOST_CONSIDERED = 200  # policies told of one by one


class InvalidQueryError(ValueError):
    """What was asked makes no sense here; the text says why."""


@dataclass(frozen=True)
class _End:
    """One end of a connection that somebody asks about."""

    ip: str
    workload: Workload | None = None

    def row(self, identity: str) -> Json:
        found = self.workload
        return {
            "address": self.ip,
            "workload": f"{found.namespace}/{found.name}" if found else "",
            "node": found.node if found else "",
            "identity": identity,
        }


class PolicySimulator:
    """Reads the mirror and the policies of the agent; changes nothing."""

    def __init__(self, mirror: ClusterView, policies: PolicyEngine) -> None:
        self._mirror = mirror
        self._policies = policies

    def policies(self) -> Json:
        """All policies, by key."""
        return {"policies": [_row(each) for each in sorted(self._policies, key=lambda p: p.key)]}

    def policy(self, query: Mapping[str, str]) -> Json:
        """Policies by `name`, as NAME or NAMESPACE/NAME, with the workloads they take."""
        name = query.get("name", "")
        found = [
            each
            for each in sorted(self._policies, key=lambda p: p.key)
            if name in (each.name, f"{each.namespace}/{each.name}")
        ]
        if not found:
            return {"error": f"no policy {name!r}; see: ztctl policy list"}
        workloads = sorted(self._mirror.snapshot().workloads, key=lambda workload: workload.uid)
        taken: dict[str, list[str]] = {each.key: [] for each in found}
        for workload in workloads:
            for each in self._policies.applying(workload):
                if each.key in taken:
                    taken[each.key].append(f"{workload.namespace}/{workload.name}")
        return {"policies": [{**_row(each), "workloads": taken[each.key]} for each in found]}

    def test(self, query: Mapping[str, str]) -> Json:
        """What would become of a connection.

        `from`: a pod (NAME or NAMESPACE/NAME) or an address; `to`: POD:PORT or ADDRESS:PORT;
        `family`: 4 or 6, which of the pods' addresses. `identity`, even when empty, overrides what
        the source would prove.
        """
        try:
            return self._test(query)
        except InvalidQueryError as error:
            return {"error": str(error)}

    def _test(self, query: Mapping[str, str]) -> Json:
        wanted = int(query["family"]) if query.get("family") in ("4", "6") else 0
        host, _, port_text = query.get("to", "").rpartition(":")
        port = _port(port_text)
        target = self._end(host, wanted)
        source = self._end(query.get("from", ""), family(target.ip))
        path, identity = self._path(source, target)
        if "identity" in query:
            identity = query["identity"]
            path = "HBONE" if identity else "plaintext"
        answer: Json = {
            "from": source.row(identity),
            "to": {**target.row(_identity(target)), "port": port},
            "path": path,
        }
        if port in RESERVED:
            return {
                **answer,
                **_answered(False, "reserved_port", f"port {port} is reserved for the mesh"),
            }
        if target.workload is None or target.workload.protocol is not TunnelProtocol.HBONE:
            reason = "the destination is not in the mesh: no policy applies"
            return {**answer, **_answered(True, "not_in_mesh", reason)}
        if path == "node":
            reason = "connections from the node bypass the proxy, for probes: no policy applies"
            return {**answer, **_answered(True, "from_node", reason)}
        asked = AuthzRequest(source.ip, identity, SocketAddress(target.ip, port))
        return {**answer, **self._judged(target.workload, asked)}

    def _judged(self, workload: Workload, asked: AuthzRequest) -> Json:
        decision = self._policies.decide(workload, asked)
        mode = self._policies.modes(workload).at(asked.destination.port)
        applying = self._policies.applying(workload)
        facts = RequestAttributes(asked)
        return {
            "allowed": decision.allowed,
            "cause": decision.cause.name.lower(),
            "reason": decision.reason,
            "policy": display_name(decision.policy),
            "rule": f"rules[{decision.rule}]" if decision.rule >= 0 else "",
            "dry_run": decision.dry_run,
            "mtls": {"mode": mode.mode.value, "policy": display_name(mode.policy)},
            "considered": [
                _considered(each, facts)
                for each in applying[:MOST_CONSIDERED]
                if isinstance(each, AuthorizationPolicy)
            ],
            "applying": len(applying),
        }

    def _path(self, source: _End, target: _End) -> tuple[str, str]:
        """By which way such a connection comes in, and the identity that it proves by it."""
        node = target.workload.node if target.workload else ""
        if source.ip in self._mirror.node_addresses(node):
            return "node", ""
        if source.workload is None or source.workload.protocol is not TunnelProtocol.HBONE:
            return "plaintext", ""
        return "HBONE", source.workload.identity

    def _end(self, text: str, wanted: int) -> _End:
        """A pod by name, or whoever has an address. `wanted` 0 means either family."""
        workloads = self._mirror.snapshot().workloads
        try:
            ip = canonical(text.strip("[]"))
        except AddressError:
            return self._pod(text, wanted, workloads)
        holders = [each for each in workloads if ip in each.addresses and not each.host_network]
        return _End(ip, max(holders, key=_in_mesh, default=None))

    def _pod(self, text: str, wanted: int, workloads: tuple[Workload, ...]) -> _End:
        namespace, _, name = text.rpartition("/")
        namespace = namespace or "default"
        here = [each for each in workloads if each.namespace == namespace]
        found = [each for each in here if each.name == name]
        found = found or sorted(
            (each for each in here if each.owner_name == name), key=lambda each: each.name
        )
        if not found:
            raise InvalidQueryError(f"no pod {namespace}/{name}; see: ztctl workload list")
        for ip in found[0].addresses:
            if wanted in (0, family(ip)):
                return _End(ip, found[0])
        raise InvalidQueryError(f"pod {namespace}/{name} has no IPv{wanted} address")


def _row(policy: Policy) -> Json:
    row: Json = {
        "kind": type(policy).__name__,
        "namespace": policy.namespace,
        "name": policy.name,
        "state": _state(policy),
        "message": _message(policy),
        "definition": _definition(policy),
    }
    if isinstance(policy, AuthorizationPolicy):
        return {**row, "action": policy.action.value, "rules": len(policy.rules)}
    return {**row, "action": policy.mode.value, "level": policy.level.value}


def _definition(policy: Policy) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(policy)
    return {name: value for name, value in built.items() if name not in ("type", "refused")}


def _state(policy: Policy) -> str:
    if policy.refused:
        return "refused"
    if isinstance(policy, AuthorizationPolicy):
        if policy.ignored:
            return "no effect"
        if policy.dry_run:
            return "dry run"
    return "in force"


def _message(policy: Policy) -> str:
    ignored = policy.ignored if isinstance(policy, AuthorizationPolicy) else ""
    instead = _instead(policy) if policy.refused and not ignored else ""
    return "; ".join(filter(None, (policy.refused, instead, ignored, *policy.warnings)))


def _instead(policy: Policy) -> str:
    """What is done in place of a refused policy."""
    if not isinstance(policy, AuthorizationPolicy):
        return "STRICT instead"
    return "denies all instead" if policy.rules else "allows nothing instead"


def _considered(policy: AuthorizationPolicy, facts: RequestAttributes) -> Json:
    index = RuleIndex()
    index.add(policy)
    hit = index.first(facts)
    return {
        "policy": display_name(policy.key),
        "action": policy.action.value,
        "dry_run": policy.dry_run,
        "matches": f"rules[{hit.number}]" if hit else "",
    }


def _answered(allowed: bool, cause: str, reason: str) -> Json:
    return {"allowed": allowed, "cause": cause, "reason": reason, "policy": "", "rule": ""}


def _identity(end: _End) -> str:
    found = end.workload
    return found.identity if found and found.protocol is TunnelProtocol.HBONE else ""


def _in_mesh(workload: Workload) -> bool:
    return workload.protocol is TunnelProtocol.HBONE


def _port(text: str) -> int:
    try:
        return parse_authority(f"0.0.0.0:{text}").port
    except AddressError as error:
        raise InvalidQueryError(f"{text!r} is no port; say POD:PORT") from error
