# SPDX-License-Identifier: Apache-2.0
"""Parses Gateway and ListenerSet (Gateway API v1.6).

An invalid listener has an `error` and does not affect the other listeners.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.kube.objects.l7_kinds import GATEWAY_GROUP
from ztunnel.l7.api.route_common import ignored_field
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.mesh.selectors import Selector, SelectorError, from_object, selects

MAX_LISTENERS = 256  # of one object; Gateway API allows 64
HOSTNAME = re.compile(r"(?:\*\.)?[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_GATEWAY_SPEC = (
    "gatewayClassName",
    "listeners",
    "addresses",
    "infrastructure",
    "allowedListeners",
    "tls",
)
_LISTENER = ("name", "hostname", "port", "protocol", "tls", "allowedRoutes")


class ListenerProtocol(StrEnum):
    """The protocols of Gateway API's listeners that gateways serve."""

    HTTP = "HTTP"
    HTTPS = "HTTPS"
    TLS = "TLS"
    TCP = "TCP"
    UDP = "UDP"


class TlsMode(StrEnum):
    """Whether the gateway terminates TLS."""

    TERMINATE = "Terminate"
    PASSTHROUGH = "Passthrough"


class NamespacesFrom(StrEnum):
    """Whose routes, or ListenerSets, may attach."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"
    NONE = "None"


class ClientValidationMode(StrEnum):
    """What happens to clients without a valid certificate."""

    VALID_ONLY = "AllowValidOnly"
    INSECURE_FALLBACK = "AllowInsecureFallback"


class CertificateRef(msgspec.Struct, frozen=True, kw_only=True):
    """A reference to a Secret or ConfigMap, with defaults filled in. `where`: its path."""

    group: str = ""
    kind: str = "Secret"
    namespace: str
    name: str
    where: str = ""


class RouteKind(NamedTuple):
    """A kind of routes."""

    group: str
    kind: str


class AllowedNamespaces(msgspec.Struct, frozen=True):
    """The namespaces of routes, or of ListenerSets, that may attach."""

    origin: NamespacesFrom = NamespacesFrom.SAME
    selector: Selector = ()

    def admits(self, own: str, namespace: str, labels: Mapping[str, str]) -> bool:
        """Return whether objects of a namespace with these labels may attach in `own`."""
        match self.origin:
            case NamespacesFrom.ALL:
                return True
            case NamespacesFrom.SAME:
                return namespace == own
            case NamespacesFrom.SELECTOR:
                return selects((self.selector,), labels)
            case NamespacesFrom.NONE:
                return False


class AllowedRoutes(msgspec.Struct, frozen=True):
    """Which routes may attach; no `kinds`: all that fit to the protocol."""

    namespaces: AllowedNamespaces = AllowedNamespaces()
    kinds: tuple[RouteKind, ...] = ()


class ListenerTls(msgspec.Struct, frozen=True, kw_only=True):
    """How a listener handles TLS."""

    mode: TlsMode = TlsMode.TERMINATE
    certificates: tuple[CertificateRef, ...] = ()
    options: dict[str, str] = {}


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One listener of a Gateway or ListenerSet (`owner`).

    `hostname`: exact or `*.suffix`; empty for all. `protocol` is None if no gateway serves it.
    `error`: why the listener cannot be used.
    """

    owner: L7Object
    name: str
    port: int = 0
    hostname: str = ""
    protocol: ListenerProtocol | None = None
    tls: ListenerTls | None = None
    allowed: AllowedRoutes = AllowedRoutes()
    where: str = ""
    error: str = ""

    @property
    def is_passthrough(self) -> bool:
        """Whether TLS is forwarded as it is."""
        return self.tls is not None and self.tls.mode is TlsMode.PASSTHROUGH


class ClientValidation(msgspec.Struct, frozen=True, kw_only=True):
    """The validation of client certificates: by the certificates of `authorities`."""

    authorities: tuple[CertificateRef, ...] = ()
    mode: ClientValidationMode = ClientValidationMode.VALID_ONLY


class FrontendTls(msgspec.Struct, frozen=True, kw_only=True):
    """The validation of clients by port; None: clients need no certificate.

    `error`: why it cannot be used, so that no HTTPS listener may accept connections.
    """

    default: ClientValidation | None = None
    per_port: dict[int, ClientValidation | None] = {}
    error: str = ""

    def of_port(self, port: int) -> ClientValidation | None:
        """Return the validation at a port."""
        return self.per_port.get(port, self.default)


class GatewayAddress(NamedTuple):
    """A requested address; an empty value lets the platform choose one of the type."""

    type: str
    value: str


class GatewaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed Gateway. `backend_certificate`: the gateway's own towards backends."""

    obj: L7Object
    listeners: tuple[Listener, ...] = ()
    addresses: tuple[GatewayAddress, ...] = ()
    allowed_listeners: AllowedNamespaces = AllowedNamespaces(NamespacesFrom.NONE)
    frontend_tls: FrontendTls = FrontendTls()
    backend_certificate: CertificateRef | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.obj.namespace}/{self.obj.name}"


class ListenerSetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed ListenerSet. `gateway`: `namespace/name` of its parent, empty if that is another
    kind of object."""

    obj: L7Object
    gateway: str = ""
    listeners: tuple[Listener, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse_gateway(obj: L7Object) -> GatewaySpec:
    """Return the parsed Gateway; what cannot be used is in `problems`."""
    spec = Fields(obj.spec, "spec.")
    problems = [ignored_field(obj, name) for name in sorted(obj.spec) if name not in _GATEWAY_SPEC]
    listeners = _listeners(obj, spec, problems)
    addresses: tuple[GatewayAddress, ...] = ()
    allowed = AllowedNamespaces(NamespacesFrom.NONE)
    backend = None
    try:
        addresses = tuple(
            GatewayAddress(each.string("type") or "IPAddress", each.string("value"))
            for each in spec.mappings("addresses")
        )
    except TranslateError as error:
        problems.append(_invalid(obj, "spec.addresses", error))
    try:
        allowed = _namespaces(spec.mapping("allowedListeners"), NamespacesFrom.NONE)
    except TranslateError as error:
        problems.append(_invalid(obj, "spec.allowedListeners", error))
    frontend = _frontend(obj, spec)
    if frontend.error:
        problems.append(_invalid(obj, "spec.tls.frontend", frontend.error))
    try:
        backend = _backend_certificate(obj, spec)
    except TranslateError as error:
        problems.append(_invalid(obj, "spec.tls.backend", error))
    return GatewaySpec(
        obj=obj,
        listeners=listeners,
        addresses=addresses,
        allowed_listeners=allowed,
        frontend_tls=frontend,
        backend_certificate=backend,
        problems=tuple(problems),
    )


def parent_gateway(obj: L7Object) -> str:
    """`namespace/name` of the parent of a ListenerSet; empty if it is another kind of object.

    Raises TranslateError. It reads no listeners, which most callers need of few sets only.
    """
    parent = Fields(obj.spec, "spec.").mapping("parentRef")
    parent.allow_only("group", "kind", "namespace", "name")
    group = parent.string("group") if parent.has("group") else GATEWAY_GROUP
    if (group, parent.string("kind") or "Gateway") != (GATEWAY_GROUP, "Gateway"):
        return ""
    return f"{parent.string('namespace') or obj.namespace}/{parent.string('name')}"


def parse_listener_set(obj: L7Object) -> ListenerSetSpec:
    """Return the parsed ListenerSet; what cannot be used is in `problems`."""
    spec = Fields(obj.spec, "spec.")
    known = ("parentRef", "listeners")
    problems = [ignored_field(obj, name) for name in sorted(obj.spec) if name not in known]
    gateway = ""
    try:
        gateway = parent_gateway(obj)
    except TranslateError as error:
        problems.append(_invalid(obj, "spec.parentRef", error))
    listeners = _listeners(obj, spec, problems)
    return ListenerSetSpec(obj=obj, gateway=gateway, listeners=listeners, problems=tuple(problems))


def _listeners(obj: L7Object, spec: Fields, problems: list[Problem]) -> tuple[Listener, ...]:
    try:
        raw = list(spec.mappings("listeners"))
        if len(raw) > MAX_LISTENERS:
            raise spec.error("listeners", f"at most {MAX_LISTENERS}")
    except TranslateError as error:
        problems.append(_invalid(obj, "spec.listeners", error))
        return ()
    found = [_listener(obj, each) for each in raw]
    problems += [_invalid(obj, each.where, each.error) for each in found if each.error]
    return tuple(found)


def _listener(obj: L7Object, fields: Fields) -> Listener:
    where = fields.path("").rstrip(".")
    raw = fields.raw("name")
    name = raw if isinstance(raw, str) else ""
    try:
        fields.allow_only(*_LISTENER)
        if not _NAME.fullmatch(name):
            raise fields.error("name", "a name")
        port = fields.port("port")
        if port is None:
            raise fields.error("port", "a port number")
        hostname = fields.string("hostname")
        if hostname and not HOSTNAME.fullmatch(hostname):
            raise fields.error("hostname", "a hostname, or *. and a hostname")
        text = fields.string("protocol")
        protocol = ListenerProtocol(text) if text in set(ListenerProtocol) else None
        return Listener(
            owner=obj,
            name=name,
            port=port,
            hostname=hostname,
            protocol=protocol,
            tls=_tls(obj, fields.mapping("tls")) if fields.has("tls") else None,
            allowed=_allowed(fields.mapping("allowedRoutes")),
            where=where,
        )
    except TranslateError as error:
        port_or_0 = fields.raw("port")
        port = port_or_0 if isinstance(port_or_0, int) else 0
        return Listener(owner=obj, name=name, port=port, where=where, error=str(error))


def _tls(obj: L7Object, fields: Fields) -> ListenerTls:
    fields.allow_only("mode", "certificateRefs", "options")
    mode = fields.string("mode") or TlsMode.TERMINATE.value
    if mode not in set(TlsMode):
        raise fields.error("mode", "Terminate or Passthrough")
    references = [_reference(obj, each) for each in fields.mappings("certificateRefs")]
    return ListenerTls(
        mode=TlsMode(mode), certificates=tuple(references), options=fields.labels("options")
    )


def _reference(obj: L7Object, fields: Fields, kind: str = "Secret") -> CertificateRef:
    fields.allow_only("group", "kind", "namespace", "name")
    if not fields.string("name"):
        raise fields.error("name", "a name")
    return CertificateRef(
        group=fields.string("group"),
        kind=fields.string("kind") or kind,
        namespace=fields.string("namespace") or obj.namespace,
        name=fields.string("name"),
        where=fields.path("").rstrip("."),
    )


def _allowed(fields: Fields) -> AllowedRoutes:
    fields.allow_only("namespaces", "kinds")
    kinds = []
    for each in fields.mappings("kinds"):
        each.allow_only("group", "kind")
        group = each.string("group") if each.has("group") else GATEWAY_GROUP
        kinds.append(RouteKind(group, each.string("kind")))
    return AllowedRoutes(_namespaces(fields, NamespacesFrom.SAME), tuple(kinds))


def _namespaces(fields: Fields, default: NamespacesFrom) -> AllowedNamespaces:
    namespaces = fields.mapping("namespaces")
    namespaces.allow_only("from", "selector")
    text = namespaces.string("from") or default.value
    if text not in set(NamespacesFrom):
        raise namespaces.error("from", " or ".join(NamespacesFrom))
    if text != NamespacesFrom.SELECTOR:
        return AllowedNamespaces(NamespacesFrom(text))
    if not namespaces.has("selector"):
        return AllowedNamespaces(NamespacesFrom.NONE)
    try:
        selector = from_object(namespaces.raw("selector"))
    except SelectorError as error:
        raise namespaces.error("selector", "a label selector") from error
    return AllowedNamespaces(NamespacesFrom.SELECTOR, selector)


def _frontend(obj: L7Object, spec: Fields) -> FrontendTls:
    try:
        tls = spec.mapping("tls")
        tls.allow_only("frontend", "backend")
        frontend = tls.mapping("frontend")
        frontend.allow_only("default", "perPort")
        per_port: dict[int, ClientValidation | None] = {}
        for each in frontend.mappings("perPort"):
            each.allow_only("port", "tls")
            port = each.port("port")
            if port is None:
                raise each.error("port", "a port number")
            per_port[port] = _validation(obj, each.mapping("tls"))
        return FrontendTls(default=_validation(obj, frontend.mapping("default")), per_port=per_port)
    except TranslateError as error:
        return FrontendTls(error=str(error))


def _validation(obj: L7Object, tls: Fields) -> ClientValidation | None:
    tls.allow_only("validation")
    if not tls.has("validation"):
        return None
    fields = tls.mapping("validation")
    fields.allow_only("caCertificateRefs", "mode")
    mode = fields.string("mode") or ClientValidationMode.VALID_ONLY.value
    if mode not in set(ClientValidationMode):
        raise fields.error("mode", " or ".join(ClientValidationMode))
    references = [
        _reference(obj, each, "ConfigMap") for each in fields.mappings("caCertificateRefs")
    ]
    if not references:
        raise fields.error("caCertificateRefs", "at least one reference")
    return ClientValidation(authorities=tuple(references), mode=ClientValidationMode(mode))


def _backend_certificate(obj: L7Object, spec: Fields) -> CertificateRef | None:
    backend = spec.mapping("tls").mapping("backend")
    backend.allow_only("clientCertificateRef")
    if not backend.has("clientCertificateRef"):
        return None
    return _reference(obj, backend.mapping("clientCertificateRef"))


def _invalid(obj: L7Object, field: str, error: object) -> Problem:
    return problem_of(
        obj,
        field=field,
        message=str(error),
        severity=Severity.ERROR,
        reason="Invalid",
    )
