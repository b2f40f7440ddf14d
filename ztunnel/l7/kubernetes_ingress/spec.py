# SPDX-License-Identifier: Apache-2.0
"""Parses Ingress and IngressClass objects (networking.k8s.io/v1).

An Ingress whose spec is invalid is rejected as a whole.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from ztunnel.kube.objects.fields import Fields, Object, TranslateError
from ztunnel.kube.objects.l7_kinds import GATEWAY_GROUP

CONTROLLER_NAME = "ztunnel.dev/ingress-controller"  # spec.controller of our IngressClasses
API_VERSION = "networking.k8s.io/v1"
MAX_HOSTS = 512  # of the rules of one Ingress, and of its certificates: each becomes an object
_LEGACY_CLASS = "kubernetes.io/ingress.class"  # the field's predecessor; it precedes the field
_DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"


class PathType(StrEnum):
    """How a path is matched. ImplementationSpecific is handled like Prefix, as in Istio."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    IMPLEMENTATION_SPECIFIC = "ImplementationSpecific"


class Backend(NamedTuple):
    """Port `port`, or the port with the name `port_name`, of a Service in the same namespace.

    `resource`: apiGroup, kind and name of another object; `service` is empty then.
    """

    service: str
    port: int | None = None
    port_name: str = ""
    resource: tuple[str, str, str] | None = None


class Path(NamedTuple):
    """`where` is the path of the field, for messages."""

    path: str
    type: PathType
    backend: Backend
    where: str


class Tls(NamedTuple):
    """The certificate for hosts; without any, for connections to every host."""

    hosts: tuple[str, ...]
    secret: str
    where: str


class Ingress(msgspec.Struct, frozen=True, kw_only=True):
    """One Ingress. `rules` has paths by host; an empty host stands for every host."""

    namespace: str
    name: str
    uid: str
    created: str
    annotations: dict[str, str]
    rules: dict[str, tuple[Path, ...]]
    default_backend: Backend | None
    tls: tuple[Tls, ...]

    @property
    def age_rank(self) -> tuple[bool, str, str, str]:
        """Sort key: oldest first, then by namespace and name."""
        return (not self.created, self.created, self.namespace, self.name)


class IngressClass(NamedTuple):
    """`gateway`: `namespace/name` of the Gateway that serves the class; empty if `error`."""

    name: str
    is_default: bool
    gateway: str = ""
    error: str = ""


def ingress_class(obj: Object) -> IngressClass | None:
    """Return a class of ours, None for one of another controller."""
    metadata = Fields(obj.get("metadata") or {}, "metadata.")
    spec = Fields(obj.get("spec") or {}, "spec.")
    name = metadata.string("name")
    if spec.raw("controller") != CONTROLLER_NAME:
        return None
    try:
        is_default = metadata.labels("annotations").get(_DEFAULT_CLASS) == "true"
        return IngressClass(name, is_default, _gateway(spec.mapping("parameters")))
    except TranslateError as error:
        return IngressClass(name, is_default=False, error=str(error))


def class_name(obj: Object) -> str:
    """Return the class that an Ingress names, empty if it leaves the choice to the cluster."""
    metadata, spec = obj.get("metadata") or {}, obj.get("spec") or {}
    annotations = metadata.get("annotations") or {}
    found = annotations.get(_LEGACY_CLASS) or spec.get("ingressClassName")
    return found if isinstance(found, str) else ""


def parse_ingress(obj: Object) -> Ingress:
    """Parse an Ingress. Raises TranslateError."""
    metadata = Fields(obj["metadata"], "metadata.")
    spec = Fields(obj.get("spec") or {}, "spec.")
    rules: dict[str, tuple[Path, ...]] = {}
    for rule in spec.mappings("rules"):
        host = rule.string("host")
        rules[host] = rules.get(host, ()) + _paths(rule)
    default = spec.mapping("defaultBackend")
    tls = tuple(
        Tls(tuple(each.strings("hosts")), each.string("secretName"), each.path("secretName"))
        for each in spec.mappings("tls")
    )
    if len(rules) > MAX_HOSTS:
        raise spec.error("rules", f"at most {MAX_HOSTS} hosts")
    if sum(len(each.hosts) for each in tls) > MAX_HOSTS:
        raise spec.error("tls", f"at most {MAX_HOSTS} hosts")
    return Ingress(
        namespace=metadata.string("namespace") or "default",
        name=metadata.string("name"),
        uid=metadata.string("uid"),
        created=metadata.string("creationTimestamp"),
        annotations=metadata.labels("annotations"),
        rules=rules,
        default_backend=_backend(default) if spec.has("defaultBackend") else None,
        tls=tls,
    )


def _gateway(parameters: Fields) -> str:
    group, kind = parameters.string("apiGroup"), parameters.string("kind")
    if (group, kind) != (GATEWAY_GROUP, "Gateway"):
        raise parameters.error("kind", f"Gateway of {GATEWAY_GROUP}")
    namespace, name = parameters.string("namespace"), parameters.string("name")
    if parameters.string("scope") != "Namespace" or not namespace:
        raise parameters.error("scope", "Namespace, with the namespace of the Gateway")
    return f"{namespace}/{name}"


def _paths(rule: Fields) -> tuple[Path, ...]:
    found = []
    for path in rule.mapping("http").mappings("paths"):
        text = path.string("path") or "/"
        if not text.startswith("/"):
            raise path.error("path", "a path that begins with /")
        try:
            kind = PathType(path.string("pathType"))
        except ValueError:
            raise path.error("pathType", "one of " + ", ".join(PathType)) from None
        found.append(Path(text, kind, _backend(path.mapping("backend")), path.path("backend")))
    return tuple(found)


def _backend(backend: Fields) -> Backend:
    if backend.has("resource"):
        resource = backend.mapping("resource")
        fields = (resource.string("apiGroup"), resource.string("kind"), resource.string("name"))
        return Backend("", resource=fields)
    service = backend.mapping("service")
    port = service.mapping("port")
    return Backend(service.string("name"), port.port("number"), port.string("name"))
