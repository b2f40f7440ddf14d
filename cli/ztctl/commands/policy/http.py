# SPDX-License-Identifier: Apache-2.0
"""Predicts the decision of a waypoint about an HTTP request. No traffic is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from ztctl import output
from ztctl.errors import CommandError
from ztctl.output import Row
from ztunnel.l7.api.authorization_policy import Action
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.routing.protocols import declared_protocol
from ztunnel.l7.security.evaluate import Decision
from ztunnel.l7.security.filters import AUTHORIZATION_POLICIES
from ztunnel.l7.security.request import Connection, HttpRequest
from ztunnel.l7.security.simulate import simulate
from ztunnel.mesh import spiffe
from ztunnel.mesh.address import AddressError, canonical
from ztunnel.mesh.model import Service, ServicePort, SocketAddress, Workload

NAMESPACE = "default"


class Client(NamedTuple):
    """Where a request comes from; `identity` is empty without mTLS."""

    name: str
    identity: str
    address: str


class Target(NamedTuple):
    """What a request is for."""

    destination: Destination
    address: SocketAddress
    name: str
    error: str  # why the waypoint refuses every connection; empty otherwise


def predict(
    inputs: Inputs,
    source: str,
    url: str,
    *,
    method: str,
    headers: Sequence[str],
    claims: str | None,
    namespace: str = NAMESPACE,
    has_mesh_config: bool = True,
) -> Row:
    """Return the decision as plain data. Raises CommandError for an invalid question.

    `has_mesh_config`: the external authorizers are known; else a CUSTOM policy is an error.
    """
    parts = urlsplit(url)
    request = HttpRequest(
        method=method,
        authority=_authority(headers, parts.netloc),
        path=url.partition("://")[2].partition(parts.netloc)[2] or "/",
        headers=tuple(_pairs(headers)),
    )
    client = _client(inputs, source)
    target = _target(inputs, parts.hostname or "", parts.port or 80, namespace)
    connection = Connection(
        identity=client.identity, source_ip=client.address, destination=target.address
    )
    if not has_mesh_config:
        _reject_custom(inputs, target.destination)
    if target.error:
        decision = Decision(allowed=False, reason=f"refused: {target.error}")
    else:
        decision = simulate(inputs, target.destination, connection, request, _claims(claims))
    return {
        **_decision_fields(decision),
        "from": {"workload": client.name, "identity": client.identity, "address": client.address},
        "to": {
            "service": target.name,
            "address": str(target.address),
            "waypoint": target.destination.gateway,
            "protocol": target.destination.protocol.value,
        },
        "request": {"method": method, "path": request.path, "host": request.authority},
    }


def _decision_fields(decision: Decision) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "status": decision.status,
        "reason": decision.reason,
        "policy": decision.policy,
        "rule": decision.rule,
        "response_details": decision.response_details if decision.status == 403 else "",
        "audit": decision.audit,
        "dry_run": decision.dry_run,
        "authorizers": list(decision.authorizers),
    }


def render(result: Row) -> str:
    """The result as text."""
    verdict = "allowed" if result["allowed"] else f"DENIED {result['status'] or ''}".rstrip()
    fields = {
        "decision": verdict,
        "reason": result["reason"],
        "from": " ".join(filter(None, (result["from"]["workload"], result["from"]["address"]))),
        "identity": result["from"]["identity"] or "none",
        "to": f"{result['to']['service']} {result['to']['address']}",
        "waypoint": result["to"]["waypoint"],
        "request": " ".join(result["request"].values()),
    }
    if result["to"]["protocol"] in (Protocol.TCP, Protocol.TLS):
        fields["note"] = "the port carries TCP: fields about requests are not evaluated"
    for name, key in (("rule", "rule"), ("audited by", "audit"), ("dry-run", "dry_run")):
        if result[key]:
            fields[name] = result[key]
    if result["authorizers"]:
        names = ", ".join(result["authorizers"])
        fields["also decided by"] = f"external authorizers {names}, which are not asked here"
    return output.render_fields(fields)


def _client(inputs: Inputs, text: str) -> Client:
    if text.startswith("spiffe://"):
        try:
            spiffe.parse(text)
        except spiffe.SpiffeError as error:
            raise CommandError(f"--from: {error}") from error
        return Client("", text, "")
    try:
        address = canonical(text)
    except AddressError:
        return _client_of(_pod(inputs, text))
    found = inputs.mesh.workload_at(address)
    return _client_of(found) if found is not None else Client("", "", address)


def _client_of(pod: Workload) -> Client:
    address = pod.addresses[0] if pod.addresses else ""
    is_enrolled = pod.enrolled and not pod.capture_refused
    return Client(f"{pod.namespace}/{pod.name}", pod.identity if is_enrolled else "", address)


def _pod(inputs: Inputs, text: str) -> Workload:
    namespace, _, name = text.rpartition("/")
    namespace = namespace or NAMESPACE
    here = [each for each in inputs.mesh.workloads() if each.namespace == namespace]
    found = [each for each in here if name in (each.name, each.owner_name)]
    if not found:
        raise CommandError(
            f"no pod {namespace}/{name}; hint: use a SPIFFE ID or an address, or see "
            "`ztctl workload list`"
        )
    return min(found, key=lambda each: (each.name != name, each.name))


def _target(inputs: Inputs, host: str, port: int, namespace: str) -> Target:
    pod = _pod_at(inputs, host)
    if pod is not None:
        if not pod.waypoint:
            raise CommandError(_no_waypoint(f"pod {pod.namespace}/{pod.name}"))
        destination = Destination(gateway=pod.waypoint, protocol=Protocol.HTTP, workload=pod)
        name = f"{pod.namespace}/{pod.name}"
        return Target(destination, SocketAddress(canonical(host), port), name, pod.waypoint_error)
    service = _service(inputs, host, namespace)
    if not service.waypoint:
        raise CommandError(_no_waypoint(f"service {service.key}"))
    service_port = _port(service, port)
    destination = Destination(
        gateway=service.waypoint,
        protocol=declared_protocol(service_port) or Protocol.HTTP,
        service=service,
        port=service_port,
    )
    ip = host if host in service.vips else next(iter(service.vips), "")
    return Target(destination, SocketAddress(ip, port), service.key, service.waypoint_error)


def _reject_custom(inputs: Inputs, destination: Destination) -> None:
    for policy in AUTHORIZATION_POLICIES.attached(inputs, destination):
        if policy.action is Action.CUSTOM:
            raise CommandError(
                f"{policy.key} names the external authorizer {policy.provider}, which is not known "
                "here; hint: --mesh-config FILE with the text of the ConfigMap ztunnel-mesh-config"
            )


def _no_waypoint(what: str) -> str:
    return (
        f"{what} has no waypoint, so no policy sees its HTTP requests; hint: test the connection "
        "with --to POD:PORT, or set the label istio.io/use-waypoint"
    )


def _pod_at(inputs: Inputs, host: str) -> Workload | None:
    try:
        return inputs.mesh.workload_at(canonical(host))
    except AddressError:
        return None


def _service(inputs: Inputs, host: str, namespace: str) -> Service:
    names = _candidates(host, namespace)
    for service in sorted(inputs.mesh.services(), key=lambda each: each.key):
        if service.key in names or service.hostname in names or host in service.vips:
            return service
    raise CommandError(
        f"no service {host} in namespace {namespace}; hint: use NAME.NAMESPACE, or see "
        "`ztctl service list`"
    )


def _candidates(host: str, namespace: str) -> set[str]:
    """Keys and hostnames that a name may stand for: `web`, `web.shop`, `web.shop.svc[...]`."""
    labels = host.split(".")
    found = {host, f"{namespace}/{host}"}
    if len(labels) == 2 or labels[2:3] == ["svc"]:
        found.add(f"{labels[1]}/{labels[0]}")
    return found


def _port(service: Service, number: int) -> ServicePort:
    for port in service.ports:
        if port.port == number and port.protocol == "TCP":
            return port
    numbers = ", ".join(str(port.port) for port in service.ports) or "none"
    raise CommandError(f"service {service.key} has no TCP port {number}; its ports: {numbers}")


def _pairs(headers: Iterable[str]) -> Iterable[tuple[str, str]]:
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise CommandError(f"-H {header!r:.80} is no header; hint: use 'name: value'")
        if name.strip().lower() != "host":
            yield name.strip(), value.strip()


def _authority(headers: Iterable[str], default: str) -> str:
    for header in headers:
        name, _, value = header.partition(":")
        if name.strip().lower() == "host":
            return value.strip()
    return default


def _claims(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, json.JSONDecodeError) as error:
        raise CommandError(f"--claims is no JSON object: {error}") from error
