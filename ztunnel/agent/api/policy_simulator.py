# SPDX-License-Identifier: Apache-2.0
"""Lists policies with their targets, and predicts the decision about a connection.

Results are plain data (see `admin_server`); an invalid query returns `error`.
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
from ztunnel.mesh.policy.match_terms import AuthzRequest, RequestAttributes
from ztunnel.mesh.policy.model import AuthorizationPolicy, Policy
from ztunnel.mesh.policy.rule_index import RuleIndex
from ztunnel.mesh.ports import RESERVED

MAX_CONSIDERED = 200  # policies in a result


class InvalidQueryError(ValueError):
    """The query is invalid; the text is the reason."""


@dataclass(frozen=True)
class _Peer:
    """Source or destination of the connection."""

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
    """Reads the cluster view and the policy engine of the agent."""

    def __init__(self, view: ClusterView, policies: PolicyEngine) -> None:
        self._view = view
        self._policies = policies

    def policies(self) -> Json:
        """All policies, sorted by key."""
        return {"policies": [_row(each) for each in sorted(self._policies, key=lambda p: p.key)]}

    def policy(self, query: Mapping[str, str]) -> Json:
        """The policies with a `name`, NAME or NAMESPACE/NAME, and their target workloads."""
        name = query.get("name", "")
        found = [
            each
            for each in sorted(self._policies, key=lambda p: p.key)
            if name in (each.name, f"{each.namespace}/{each.name}")
        ]
        if not found:
            return {"error": f"no policy {name!r}; hint: ztctl policy list"}
        workloads = sorted(self._view.snapshot().workloads, key=lambda workload: workload.uid)
        targets: dict[str, list[str]] = {each.key: [] for each in found}
        for workload in workloads:
            for each in self._policies.applying(workload):
                if each.key in targets:
                    targets[each.key].append(f"{workload.namespace}/{workload.name}")
        return {"policies": [{**_row(each), "workloads": targets[each.key]} for each in found]}

    def test(self, query: Mapping[str, str]) -> Json:
        """The decision about a connection.

        `from`: a pod (NAME or NAMESPACE/NAME) or an address; `to`: POD:PORT or ADDRESS:PORT;
        `family`: 4 or 6, selects the pods' addresses. `identity`, even if it is empty, overrides
        the identity of the source.
        """
        try:
            return self._test(query)
        except InvalidQueryError as error:
            return {"error": str(error)}

    def _test(self, query: Mapping[str, str]) -> Json:
        wanted_family = int(query["family"]) if query.get("family") in ("4", "6") else 0
        host, _, port_text = query.get("to", "").rpartition(":")
        port = _port(port_text)
        target = self._peer(host, wanted_family)
        source = self._peer(query.get("from", ""), family(target.ip))
        path, identity = self._path(source, target)
        if "identity" in query:
            identity = query["identity"]
            path = "HBONE" if identity else "plaintext"
        result: Json = {
            "from": source.row(identity),
            "to": {**target.row(_identity(target)), "port": port},
            "path": path,
        }
        if port in RESERVED:
            return {
                **result,
                **_decision(False, "reserved_port", f"port {port} is reserved for the mesh"),
            }
        if target.workload is None or target.workload.protocol is not TunnelProtocol.HBONE:
            reason = "the destination is not in the mesh: no policy applies"
            return {**result, **_decision(True, "not_in_mesh", reason)}
        if path == "node":
            reason = "connections from the node bypass the proxy, for probes: no policy applies"
            return {**result, **_decision(True, "from_node", reason)}
        request = AuthzRequest(source.ip, identity, SocketAddress(target.ip, port))
        return {**result, **self._authorize(target.workload, request)}

    def _authorize(self, workload: Workload, request: AuthzRequest) -> Json:
        decision = self._policies.decide(workload, request)
        mode = self._policies.modes(workload).at(request.destination.port)
        applying = self._policies.applying(workload)
        attributes = RequestAttributes(request)
        return {
            "allowed": decision.allowed,
            "cause": decision.cause.name.lower(),
            "reason": decision.reason,
            "policy": display_name(decision.policy),
            "rule": f"rules[{decision.rule}]" if decision.rule >= 0 else "",
            "dry_run": decision.dry_run,
            "mtls": {"mode": mode.mode.value, "policy": display_name(mode.policy)},
            "considered": [
                _considered(each, attributes)
                for each in applying[:MAX_CONSIDERED]
                if isinstance(each, AuthorizationPolicy)
            ],
            "applying": len(applying),
        }

    def _path(self, source: _Peer, target: _Peer) -> tuple[str, str]:
        """The path of the connection, and the identity that the source proves on it."""
        node = target.workload.node if target.workload else ""
        if source.ip in self._view.node_addresses(node):
            return "node", ""
        if source.workload is None or source.workload.protocol is not TunnelProtocol.HBONE:
            return "plaintext", ""
        return "HBONE", source.workload.identity

    def _peer(self, text: str, wanted_family: int) -> _Peer:
        """A pod by name, or the workload with an address. `wanted_family` 0 means any."""
        workloads = self._view.snapshot().workloads
        try:
            ip = canonical(text.strip("[]"))
        except AddressError:
            return self._pod(text, wanted_family, workloads)
        holders = [each for each in workloads if ip in each.addresses and not each.host_network]
        return _Peer(ip, max(holders, key=_in_mesh, default=None))

    def _pod(self, text: str, wanted_family: int, workloads: tuple[Workload, ...]) -> _Peer:
        namespace, _, name = text.rpartition("/")
        namespace = namespace or "default"
        here = [each for each in workloads if each.namespace == namespace]
        found = [each for each in here if each.name == name]
        found = found or sorted(
            (each for each in here if each.owner_name == name), key=lambda each: each.name
        )
        if not found:
            raise InvalidQueryError(f"no pod {namespace}/{name}; hint: ztctl workload list")
        for ip in found[0].addresses:
            if wanted_family in (0, family(ip)):
                return _Peer(ip, found[0])
        raise InvalidQueryError(f"pod {namespace}/{name} has no IPv{wanted_family} address")


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
    fields: dict[str, Any] = msgspec.to_builtins(policy)
    return {name: value for name, value in fields.items() if name not in ("type", "refused")}


def _state(policy: Policy) -> str:
    if isinstance(policy, AuthorizationPolicy) and policy.at_waypoint:
        return "at waypoint"
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
    """The effect of a rejected policy."""
    if not isinstance(policy, AuthorizationPolicy):
        return "STRICT instead"
    return "denies all instead" if policy.rules else "allows nothing instead"


def _considered(policy: AuthorizationPolicy, attributes: RequestAttributes) -> Json:
    index = RuleIndex()
    index.add(policy)
    match = index.first(attributes)
    return {
        "policy": display_name(policy.key),
        "action": policy.action.value,
        "dry_run": policy.dry_run,
        "matches": f"rules[{match.number}]" if match else "",
    }


def _decision(allowed: bool, cause: str, reason: str) -> Json:
    return {"allowed": allowed, "cause": cause, "reason": reason, "policy": "", "rule": ""}


def _identity(peer: _Peer) -> str:
    found = peer.workload
    return found.identity if found and found.protocol is TunnelProtocol.HBONE else ""


def _in_mesh(workload: Workload) -> bool:
    return workload.protocol is TunnelProtocol.HBONE


def _port(text: str) -> int:
    try:
        return parse_authority(f"0.0.0.0:{text}").port
    except AddressError as error:
        raise InvalidQueryError(f"{text!r} is not a port; hint: use POD:PORT") from error
