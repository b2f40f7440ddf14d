# SPDX-License-Identifier: Apache-2.0
"""The listeners of an ingress gateway: its own, and those of the ListenerSets that attach to it.

    Gateway and ListenerSets ─parse─▶ Listener ─▶ accepted? conflicted? references resolved?

Between objects, the Gateway precedes its ListenerSets, and an older ListenerSet a younger one
(GEP-1713). The other listeners of one object that conflict with each other are all conflicted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from ztunnel.kube.objects.fields import TranslateError
from ztunnel.kube.objects.l7_kinds import (
    GATEWAY_CERTIFICATES_ANNOTATION,
    GATEWAY_GROUP,
    NAMESPACE,
)
from ztunnel.l7.api.gateway import (
    CertificateRef,
    GatewaySpec,
    Listener,
    ListenerProtocol,
    ListenerSetSpec,
    RouteKind,
    TlsMode,
    parent_gateway,
    parse_gateway,
    parse_listener_set,
)
from ztunnel.l7.ingress.client_authorities import client_authorities
from ztunnel.l7.names import MAX_GATEWAY_PORTS, certificate_id, is_ingress_class
from ztunnel.l7.objects import L7Key, L7Object
from ztunnel.l7.routing.references import Reference, is_granted
from ztunnel.l7.store import L7Store

RESERVED_PORTS = range(15000, 15100)  # of the mesh and of Envoy's own listeners
OUR_CONTROLLERS = "ztunnel.dev/"  # prefix of spec.controllerName of our GatewayClasses
_NAME_LABEL = "kubernetes.io/metadata.name"  # Kubernetes sets it on every namespace

_HTTP_KINDS = (RouteKind(GATEWAY_GROUP, "HTTPRoute"), RouteKind(GATEWAY_GROUP, "GRPCRoute"))
_KINDS: dict[ListenerProtocol, tuple[RouteKind, ...]] = {
    ListenerProtocol.HTTP: _HTTP_KINDS,
    ListenerProtocol.HTTPS: _HTTP_KINDS,
    ListenerProtocol.TLS: (
        RouteKind(GATEWAY_GROUP, "TLSRoute"),
        RouteKind(GATEWAY_GROUP, "TCPRoute"),
    ),
    ListenerProtocol.TCP: (RouteKind(GATEWAY_GROUP, "TCPRoute"),),
    ListenerProtocol.UDP: (RouteKind(GATEWAY_GROUP, "UDPRoute"),),
}
_PASSTHROUGH_KINDS = (RouteKind(GATEWAY_GROUP, "TLSRoute"),)
_ENCRYPTED = (ListenerProtocol.HTTPS, ListenerProtocol.TLS)

Conflict = tuple["ListenerConflict", str]


class ListenerAccepted(StrEnum):
    """Reasons of a listener's condition Accepted."""

    ACCEPTED = "Accepted"
    PORT_UNAVAILABLE = "PortUnavailable"
    UNSUPPORTED_PROTOCOL = "UnsupportedProtocol"
    INVALID = "Invalid"
    NO_VALID_CA = "NoValidCACertificate"


class ListenerConflict(StrEnum):
    """Reasons of a listener's condition Conflicted."""

    NONE = "NoConflicts"
    HOSTNAME = "HostnameConflict"
    PROTOCOL = "ProtocolConflict"


_NO_CONFLICT: Conflict = (ListenerConflict.NONE, "")


class ListenerResolved(StrEnum):
    """Reasons of a listener's condition ResolvedRefs."""

    RESOLVED = "ResolvedRefs"
    INVALID_CERTIFICATE = "InvalidCertificateRef"
    NOT_PERMITTED = "RefNotPermitted"
    INVALID_KINDS = "InvalidRouteKinds"
    INVALID_CA = "InvalidCACertificateRef"
    INVALID_CA_KIND = "InvalidCACertificateKind"


class EffectiveListener(msgspec.Struct, frozen=True, kw_only=True):
    """A listener with the raw material of its conditions.

    `kinds`: the routes that may attach. `certificates`: those that exist and may be used.
    """

    listener: Listener
    accepted: ListenerAccepted = ListenerAccepted.ACCEPTED
    accepted_message: str = ""
    conflicted: ListenerConflict = ListenerConflict.NONE
    conflicted_message: str = ""
    resolved: ListenerResolved = ListenerResolved.RESOLVED
    resolved_message: str = ""
    kinds: tuple[RouteKind, ...] = ()
    certificates: tuple[CertificateRef, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether the gateway accepts connections for it."""
        if self.accepted is not ListenerAccepted.ACCEPTED:
            return False
        if self.conflicted is not ListenerConflict.NONE:
            return False
        return not self.terminates_tls or bool(self.certificates)

    @property
    def terminates_tls(self) -> bool:
        """Whether it needs a certificate."""
        return self.listener.protocol in _ENCRYPTED and not self.listener.is_passthrough

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Kind, namespace and name of the owner, and the listener's name."""
        owner = self.listener.owner
        return (owner.kind, owner.namespace, owner.name, self.listener.name)


class CertificateState(StrEnum):
    """Reasons of a Gateway's condition ResolvedRefs."""

    RESOLVED = "ResolvedRefs"
    INVALID = "InvalidClientCertificateRef"
    NOT_PERMITTED = "RefNotPermitted"


def is_ingress_gateway(store: L7Store, gateway: L7Object | None) -> bool:
    """Return whether a Gateway is an ingress gateway of the mesh.

    The class `istio` belongs to istiod if a GatewayClass of its controller exists.
    """
    name = gateway.spec.get("gatewayClassName") if gateway is not None else None
    if not is_ingress_class(name):
        return False
    found = store.get("GatewayClass", "", str(name))
    controller = found.spec.get("controllerName") if found is not None else None
    return found is None or str(controller).startswith(OUR_CONTROLLERS)


def ingress_gateways(store: L7Store) -> list[str]:
    """Return the ingress gateways of the mesh, `namespace/name`."""
    found = (each for each in store.of_kind("Gateway") if is_ingress_gateway(store, each))
    return sorted(f"{each.namespace}/{each.name}" for each in found)


def effective_listeners(store: L7Store, gateway: L7Object) -> tuple[EffectiveListener, ...]:
    """Return the listeners in their order of precedence."""
    spec = parse_gateway(gateway)
    sets = [s for s in listener_sets(store, spec) if is_set_allowed(store, spec, s)]
    listeners = [*spec.listeners, *(each for s in sets for each in s.listeners)]
    files = certificate_files(gateway)
    conflicts = _conflicts(_by_owner(listeners))
    found = (
        _effective(store, each, files, conflicts.get(id(each), _NO_CONFLICT)) for each in listeners
    )
    return tuple(_within_ports(_with_authorities(store, spec, each, files) for each in found))


def backend_certificate(store: L7Store, gateway: GatewaySpec) -> tuple[CertificateState, str]:
    """Return whether the client certificate of a Gateway towards backends can be used, and why
    not."""
    ref = gateway.backend_certificate
    if ref is None:
        return CertificateState.RESOLVED, ""
    reason, message = _certificate(store, gateway.obj, ref, certificate_files(gateway.obj))
    if reason is ListenerResolved.RESOLVED:
        return CertificateState.RESOLVED, ""
    is_denied = reason is ListenerResolved.NOT_PERMITTED
    return CertificateState.NOT_PERMITTED if is_denied else CertificateState.INVALID, message


def listener_sets(store: L7Store, gateway: GatewaySpec) -> tuple[ListenerSetSpec, ...]:
    """Return the ListenerSets that name a Gateway as parent, oldest first."""
    mine = [each for each in store.of_kind("ListenerSet") if _parent(each) == gateway.key]
    return tuple(map(parse_listener_set, sorted(mine, key=lambda each: each.age_rank)))


def _parent(listener_set: L7Object) -> str:
    try:
        return parent_gateway(listener_set)
    except TranslateError:
        return ""


def is_set_allowed(store: L7Store, gateway: GatewaySpec, spec: ListenerSetSpec) -> bool:
    """Return whether a Gateway admits a ListenerSet (`spec.allowedListeners`)."""
    labels = namespace_labels(store, spec.obj.namespace)
    own = gateway.obj.namespace
    return gateway.allowed_listeners.admits(own, spec.obj.namespace, labels)


def namespace_labels(store: L7Store, name: str) -> Mapping[str, str]:
    """Return the labels of a namespace."""
    found = store.get(NAMESPACE, "", name)
    return {**(found.labels if found is not None else {}), _NAME_LABEL: name}


def certificate_files(gateway: L7Object) -> Mapping[str, str]:
    """Return the usable files in the gateway's pods, with a digest of the content."""
    try:
        found = json.loads(gateway.annotations.get(GATEWAY_CERTIFICATES_ANNOTATION, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): str(digest) for name, digest in found.items()}


def supported_kinds(listener: Listener) -> tuple[tuple[RouteKind, ...], bool]:
    """Return the kinds of routes that may attach, and whether all requested ones are among them."""
    if listener.protocol is None:
        return (), True
    known = _PASSTHROUGH_KINDS if listener.is_passthrough else _KINDS[listener.protocol]
    wanted = listener.allowed.kinds
    if not wanted:
        return known, True
    return tuple(each for each in wanted if each in known), all(w in known for w in wanted)


def _effective(
    store: L7Store, listener: Listener, files: Mapping[str, str], conflict: Conflict
) -> EffectiveListener:
    accepted, accepted_message = _acceptance(listener)
    kinds, are_all_known = supported_kinds(listener)
    certificates, resolved, message = _certificates(store, listener, files)
    if not are_all_known:
        resolved = ListenerResolved.INVALID_KINDS
        message = f"{listener.where}.allowedRoutes.kinds: not supported by {listener.protocol}"
    return EffectiveListener(
        listener=listener,
        accepted=accepted,
        accepted_message=accepted_message,
        conflicted=conflict[0],
        conflicted_message=conflict[1],
        resolved=resolved,
        resolved_message=message,
        kinds=kinds,
        certificates=certificates,
    )


def _with_authorities(
    store: L7Store, gateway: GatewaySpec, listener: EffectiveListener, files: Mapping[str, str]
) -> EffectiveListener:
    """Add what is wrong with the validation of clients, unless something else is."""
    if listener.listener.protocol is not ListenerProtocol.HTTPS:
        return listener
    found = client_authorities(store, gateway, listener.listener.port, files)
    if found.error is None:
        return listener
    changed: dict[str, object] = {}
    unresolved = (ListenerResolved.RESOLVED, ListenerResolved.INVALID_CERTIFICATE)
    if listener.resolved is ListenerResolved.RESOLVED or (
        not found.is_usable and listener.resolved in unresolved
    ):
        changed["resolved"] = ListenerResolved(found.error.value)
        changed["resolved_message"] = found.message
    if listener.accepted is ListenerAccepted.ACCEPTED and not found.is_usable:
        changed["accepted"] = ListenerAccepted.NO_VALID_CA
        changed["accepted_message"] = found.message
    return msgspec.structs.replace(listener, **changed)


def _within_ports(listeners: Iterable[EffectiveListener]) -> Iterator[EffectiveListener]:
    """Reject the listeners whose ports the gateway's Service cannot have any more."""
    ports: set[tuple[int, str]] = set()
    for each in listeners:
        port = _transport(each.listener)
        is_valid = each.accepted in (ListenerAccepted.ACCEPTED, ListenerAccepted.NO_VALID_CA)
        if not is_valid or each.conflicted is not ListenerConflict.NONE or port in ports:
            yield each
        elif len(ports) < MAX_GATEWAY_PORTS:
            ports.add(port)
            yield each
        else:
            yield msgspec.structs.replace(
                each,
                accepted=ListenerAccepted.PORT_UNAVAILABLE,
                accepted_message=f"the gateway has {MAX_GATEWAY_PORTS} other ports, the maximum",
            )


def _acceptance(listener: Listener) -> tuple[ListenerAccepted, str]:
    where = listener.where
    if listener.error:
        return ListenerAccepted.INVALID, listener.error
    if listener.protocol is None:
        message = f"{where}.protocol: want {', '.join(ListenerProtocol)}"
        return ListenerAccepted.UNSUPPORTED_PROTOCOL, message
    if listener.port in RESERVED_PORTS:
        message = f"{where}.port: {RESERVED_PORTS[0]} to {RESERVED_PORTS[-1]} belong to the mesh"
        return ListenerAccepted.PORT_UNAVAILABLE, message
    is_encrypted = listener.protocol in _ENCRYPTED
    if is_encrypted == (listener.tls is None):
        message = f"{where}.tls: want it for HTTPS and TLS, and not for other protocols"
        return ListenerAccepted.INVALID, message
    if listener.protocol is ListenerProtocol.HTTPS and listener.is_passthrough:
        return ListenerAccepted.INVALID, f"{where}.tls.mode: want Terminate for HTTPS"
    return ListenerAccepted.ACCEPTED, ""


def _certificates(
    store: L7Store, listener: Listener, files: Mapping[str, str]
) -> tuple[tuple[CertificateRef, ...], ListenerResolved, str]:
    """The usable certificates, and the first error of a reference."""
    tls = listener.tls
    if tls is None or tls.mode is not TlsMode.TERMINATE:
        return (), ListenerResolved.RESOLVED, ""
    usable = []
    error = (ListenerResolved.RESOLVED, "")
    if not tls.certificates:
        text = f"{listener.where}.tls.certificateRefs: no certificate"
        error = (ListenerResolved.INVALID_CERTIFICATE, text)
    for ref in tls.certificates:
        reason, message = _certificate(store, listener.owner, ref, files)
        if reason is ListenerResolved.RESOLVED:
            usable.append(ref)
        elif error[0] is ListenerResolved.RESOLVED:
            error = (reason, message)
    return tuple(usable), *error


def _certificate(
    store: L7Store, owner: L7Object, ref: CertificateRef, files: Mapping[str, str]
) -> tuple[ListenerResolved, str]:
    invalid = ListenerResolved.INVALID_CERTIFICATE
    if (ref.group, ref.kind) != ("", "Secret"):
        kind = f"{ref.group}/{ref.kind}".lstrip("/")
        return invalid, f"{ref.where}: kind {kind} is not supported; hint: use a Secret"
    if not is_granted(store, owner, Reference("", "Secret", ref.namespace, ref.name)):
        return (
            ListenerResolved.NOT_PERMITTED,
            f"{ref.where}: no ReferenceGrant in namespace {ref.namespace} permits {owner.kind} of "
            f"namespace {owner.namespace}",
        )
    name = certificate_id(ref.kind, ref.namespace, ref.name)
    if f"{name}.crt" not in files:
        text = f"{ref.where}: Secret {ref.namespace}/{ref.name} has no valid certificate and key"
        return invalid, text
    return ListenerResolved.RESOLVED, ""


def _by_owner(listeners: Iterable[Listener]) -> Iterator[list[Listener]]:
    groups: dict[L7Key, list[Listener]] = {}
    for each in listeners:
        groups.setdefault(each.owner.key, []).append(each)
    return iter(groups.values())


def _conflicts(groups: Iterable[list[Listener]]) -> dict[int, Conflict]:
    """Return the conflict of each accepted listener, by id()."""
    found: dict[int, Conflict] = {}
    claimed = _Claims()
    for group in groups:
        valid = [each for each in group if _acceptance(each)[0] is ListenerAccepted.ACCEPTED]
        found |= {id(each): claimed.conflict(each, ()) for each in valid}
        rest = [each for each in valid if found[id(each)] is _NO_CONFLICT]
        for each in rest:
            found[id(each)] = claimed.conflict(each, [o for o in rest if o is not each])
        for each in rest:
            if found[id(each)] is _NO_CONFLICT:
                claimed.add(each)
    return found


class _Claims:
    """What listeners of preceding objects have claimed."""

    def __init__(self) -> None:
        self._protocols: dict[tuple[int, str], str] = {}  # by port and transport
        self._places: set[tuple[int, str, str]] = set()

    def add(self, listener: Listener) -> None:
        """Claim the place of a listener."""
        self._protocols.setdefault(_transport(listener), _protocol_group(listener))
        self._places.add(_place(listener))

    def conflict(self, listener: Listener, others: Sequence[Listener]) -> Conflict:
        """Return the conflict of a listener; `others` are of the same object."""
        transport, protocol = _transport(listener), _protocol_group(listener)
        same = [other for other in others if _transport(other) == transport]
        if self._protocols.get(transport, protocol) != protocol or any(
            _protocol_group(other) != protocol for other in same
        ):
            text = f"port {listener.port} has listeners of several protocols"
            return ListenerConflict.PROTOCOL, text
        place = _place(listener)
        if place in self._places or any(_place(other) == place for other in same):
            text = f"port {listener.port} has several listeners for {listener.hostname or '*'}"
            return ListenerConflict.HOSTNAME, text
        return _NO_CONFLICT


def _transport(listener: Listener) -> tuple[int, str]:
    is_udp = listener.protocol is ListenerProtocol.UDP
    return (listener.port, "UDP" if is_udp else "TCP")


def _protocol_group(listener: Listener) -> str:
    """HTTPS and TLS share a port: SNI selects the listener."""
    return "SNI" if listener.protocol in _ENCRYPTED else str(listener.protocol)


def _place(listener: Listener) -> tuple[int, str, str]:
    """What a listener claims; hostnames mean nothing to TCP and UDP."""
    is_stream = listener.protocol in (ListenerProtocol.TCP, ListenerProtocol.UDP)
    return (*_transport(listener), "" if is_stream else listener.hostname)
