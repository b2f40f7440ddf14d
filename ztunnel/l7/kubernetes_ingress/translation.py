# SPDX-License-Identifier: Apache-2.0
"""The HTTPRoutes and ListenerSets that serve Ingresses at a Gateway. Pure.

    host of a rule  ─▶ HTTPRoute, parents: the Gateway, and the ListenerSet of its certificate
    host of tls     ─▶ ListenerSet with an HTTPS listener, shared by the namespace's Ingresses

The controller applies them; everything else about them is as for objects that users write.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.l7_kinds import GATEWAY_GROUP, L7_KINDS
from ztunnel.l7.kubernetes_ingress.spec import API_VERSION, Backend, Ingress, Path, PathType
from ztunnel.l7.problems import Problem, Severity

INGRESS_LABEL: Final = "ztunnel.dev/ingress"  # of the objects; the value is "true"
HTTPS_PORT = 443
MAX_RULES = 16  # of an HTTPRoute; enforced by its CRD
_MAX_NAME_CHARS = 200
_DIGEST_CHARS = 16  # two hosts of one Ingress must not have the same name
_IGNORED_ANNOTATIONS = (
    "nginx.ingress.kubernetes.io/",
    "nginx.org/",
    "traefik.ingress.kubernetes.io/",
    "haproxy.org/",
    "haproxy-ingress.github.io/",
    "alb.ingress.kubernetes.io/",
    "projectcontour.io/",
)

PortNumber = Callable[[str, str, str], int | None]  # (namespace, service, port name)
_Secrets = Mapping[tuple[str, str], str]  # by namespace and host


class Translation(NamedTuple):
    """The objects of a Gateway's Ingresses, by kind and name in order, and what is not honoured."""

    objects: tuple[Object, ...]
    problems: tuple[Problem, ...]


def translate(ingresses: Iterable[Ingress], gateway: str, port_number: PortNumber) -> Translation:
    """Return the objects for the Ingresses that the Gateway `namespace/name` serves.

    `port_number` resolves the name of a Service's port.
    """
    ordered = sorted(ingresses, key=lambda each: each.age_rank)
    problems: list[Problem] = []
    secrets = _secrets(ordered, problems)
    objects = _listener_sets(ordered, secrets, gateway)
    complete = {
        (ingress.namespace, host)
        for ingress in ordered
        for host, paths in ingress.rules.items()
        if any(_matches_all(path) for path in paths)
    }
    for ingress in ordered:
        routes = _Routes(ingress, gateway, secrets, port_number, problems)
        objects += routes.objects(complete)
        problems += _ignored(ingress)
    return Translation(tuple(objects), tuple(sorted(set(problems))))


def listener_set_name(host: str, secret: str) -> str:
    """The name of the ListenerSet for a host and the Secret with its certificate."""
    return _name("ingress", host, secret)


class _Routes:
    """Builds the HTTPRoutes of one Ingress."""

    def __init__(
        self,
        ingress: Ingress,
        gateway: str,
        secrets: _Secrets,
        port_number: PortNumber,
        problems: list[Problem],
    ) -> None:
        self._ingress = ingress
        self._gateway = gateway
        self._secrets = secrets
        self._port_number = port_number
        self._problems = problems

    def objects(self, complete: set[tuple[str, str]]) -> list[Object]:
        """The routes, of at most MAX_RULES rules each.

        `complete`: namespaces and hosts of which a rule of any Ingress matches all paths, so that
        no default backend applies. Between namespaces, the older route of a host and path applies.
        """
        default = self._ingress.default_backend
        hosts = dict(self._ingress.rules)
        if default is not None:
            hosts.setdefault("", ())
        found = []
        for host, paths in hosts.items():
            rules = [self._rule(each.path, each.type, each.backend, each.where) for each in paths]
            if default is not None and (self._ingress.namespace, host) not in complete:
                rules.append(self._rule("/", PathType.PREFIX, default, "spec.defaultBackend"))
            chunks = [rules[at : at + MAX_RULES] for at in range(0, len(rules), MAX_RULES)]
            found += [self._route(host, number, each) for number, each in enumerate(chunks)]
        return found

    def _route(self, host: str, number: int, rules: list[Object]) -> Object:
        spec: Object = {"parentRefs": self._parents(host), "rules": rules}
        if host:
            spec["hostnames"] = [host]
        if host.startswith("*."):
            message = f"{host} matches names of several labels, too, such as a.b{host[1:]}"
            self._report("spec.rules", message, Severity.WARNING)
        name = _name(self._ingress.name, host, str(number))
        return _object("HTTPRoute", self._ingress.namespace, name, spec, [self._ingress])

    def _parents(self, host: str) -> list[Object]:
        namespace, _, name = self._gateway.partition("/")
        parents: list[Object] = [
            {"group": GATEWAY_GROUP, "kind": "Gateway", "namespace": namespace, "name": name}
        ]
        own = self._ingress.namespace
        for (where, served), secret in sorted(self._secrets.items()):
            if where == own and (not host or _covers(served, host)):
                found = listener_set_name(served, secret)
                parents.append({"group": GATEWAY_GROUP, "kind": "ListenerSet", "name": found})
        return parents

    def _rule(self, path: str, kind: PathType, backend: Backend, where: str) -> Object:
        match = "Exact" if kind is PathType.EXACT else "PathPrefix"
        rule: Object = {"matches": [{"path": {"type": match, "value": path}}]}
        found = self._backend(backend, where)
        if found is not None:
            rule["backendRefs"] = [found]
        return rule

    def _backend(self, backend: Backend, where: str) -> Object | None:
        """The reference; None if there is none, so that requests get status 500."""
        if backend.resource is not None:
            _, kind, name = backend.resource
            message = f"{kind or 'resource'} {name} is not supported; hint: use a Service"
            self._report(f"{where}.resource", message, Severity.ERROR)
            return None
        port = backend.port
        if port is None:
            namespace = self._ingress.namespace
            port = self._port_number(namespace, backend.service, backend.port_name)
        if port is None:
            message = f"Service {backend.service} has no port {backend.port_name!r}"
            self._report(f"{where}.service.port", message, Severity.ERROR)
            return None
        return {"name": backend.service, "port": port}

    def _report(self, where: str, message: str, severity: Severity) -> None:
        self._problems.append(_problem(self._ingress, where, message, severity))


def _secrets(ingresses: Iterable[Ingress], problems: list[Problem]) -> dict[tuple[str, str], str]:
    """The Secret of each host, per namespace: that of the oldest Ingress."""
    found: dict[tuple[str, str], str] = {}
    for ingress in ingresses:
        for tls in ingress.tls:
            if not tls.secret:
                message = "no Secret is named: the Gateway's own listeners may have a certificate"
                problems.append(_problem(ingress, tls.where, message, Severity.IGNORED))
                continue
            for host in tls.hosts or ("",):
                first = found.setdefault((ingress.namespace, host), tls.secret)
                if first != tls.secret:
                    message = f"{host or 'all hosts'}: an older Ingress names Secret {first}"
                    problems.append(_problem(ingress, tls.where, message, Severity.ERROR))
    return found


def _listener_sets(ingresses: Iterable[Ingress], secrets: _Secrets, gateway: str) -> list[Object]:
    owners: dict[tuple[str, str], list[Ingress]] = defaultdict(list)
    for ingress in ingresses:
        for host in {host for tls in ingress.tls for host in tls.hosts or ("",)}:
            owners[ingress.namespace, host].append(ingress)
    namespace, _, name = gateway.partition("/")
    parent = {"group": GATEWAY_GROUP, "kind": "Gateway", "namespace": namespace, "name": name}
    found = []
    for (where, host), secret in sorted(secrets.items()):
        listener: Object = {
            "name": "https",
            "port": HTTPS_PORT,
            "protocol": "HTTPS",
            "tls": {"mode": "Terminate", "certificateRefs": [{"name": secret}]},
            "allowedRoutes": {"namespaces": {"from": "Same"}},
        }
        if host:
            listener["hostname"] = host
        spec = {"parentRef": parent, "listeners": [listener]}
        of = listener_set_name(host, secret)
        found.append(_object("ListenerSet", where, of, spec, owners[where, host]))
    return found


def _object(kind: str, namespace: str, name: str, spec: Object, owners: list[Ingress]) -> Object:
    references = [
        {"apiVersion": API_VERSION, "kind": "Ingress", "name": each.name, "uid": each.uid}
        for each in owners
        if each.uid
    ]
    metadata: Object = {"name": name, "namespace": namespace, "labels": {INGRESS_LABEL: "true"}}
    if references:
        metadata["ownerReferences"] = references
    version = L7_KINDS[kind].api_version
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _matches_all(path: Path) -> bool:
    return path.path == "/" and path.type is not PathType.EXACT


def _covers(pattern: str, host: str) -> bool:
    """Whether the hosts of a certificate's listener contain a host."""
    if not pattern or pattern == host:
        return True
    return pattern.startswith("*.") and host.endswith(pattern[1:])


def _ignored(ingress: Ingress) -> list[Problem]:
    names = [n for n in sorted(ingress.annotations) if n.startswith(_IGNORED_ANNOTATIONS)]
    return [
        _problem(ingress, f"metadata.annotations[{name}]", "not honoured", Severity.IGNORED)
        for name in names
    ]


def _problem(ingress: Ingress, where: str, message: str, severity: Severity) -> Problem:
    return Problem(
        kind="Ingress",
        namespace=ingress.namespace,
        name=ingress.name,
        field=where,
        message=message,
        severity=severity,
        reason="InvalidIngress",
    )


def _name(base: str, *parts: str) -> str:
    digest = hashlib.sha256("\0".join((base, *parts)).encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{base[:_MAX_NAME_CHARS].rstrip('.-')}-{digest}"
