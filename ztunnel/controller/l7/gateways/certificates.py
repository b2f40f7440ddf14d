# SPDX-License-Identifier: Apache-2.0
"""Maintains the Secret with the certificates of each ingress gateway.

    listeners, grants ──▶ which objects ──▶ their data ──▶ 1. Secret <gateway>-<class>-certificates
                                                          2. annotation of the Gateway, for nodes
                                                          3. annotation of its pods, for kubelets

Data is read only if an object has changed since the last pass, and is not remembered. A kubelet
mounts a Secret again when the pod changes; a second annotation a moment later covers kubelets that
see the pod before the Secret. Keys are in no log and no annotation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import structlog

from ztunnel.controller.l7.gateways.certificate_watches import CertificateWatches
from ztunnel.controller.l7.gateways.objects import GatewayObjects
from ztunnel.controller.l7.object_client import ObjectClient, Ref, mapping
from ztunnel.controller.l7.watches import POD, Watches
from ztunnel.kube.client.request import FORBIDDEN, ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.l7_kinds import GATEWAY_CERTIFICATES_ANNOTATION
from ztunnel.l7.deployment.certificate_data import Absent, Data, decoded
from ztunnel.l7.deployment.certificates import (
    CertificateUse,
    Files,
    GatewayFiles,
    certificates_secret,
    gateway_files,
)
from ztunnel.l7.deployment.resources import certificates_name, possible_names
from ztunnel.l7.deployment.settings import GATEWAY_LABEL
from ztunnel.l7.names import CertificateSource
from ztunnel.l7.objects import L7Object
from ztunnel.l7.status.facts import CertificateError, CertificateFact

FIELD_MANAGER = "ztunnel-gateway-certificates"
POD_ANNOTATION = "ztunnel.dev/certificates-revision"  # a digest, and `/2` once it is the second
SECOND_TOUCH_S = 1.0
# Between writes for a Gateway: a tenant that changes its Secret in a loop must not occupy the API
# server and the kubelets of a shared gateway.
MIN_INTERVAL_S = 1.0
_SECOND = "/2"
_NOT_READABLE = "; hint: see --certificate-namespace, and the roles in docs/reference/rbac.md"

log = structlog.get_logger()


class CertificateState(NamedTuple):
    """`facts`: by file name. `conflict`: why the Secret cannot be written, or empty."""

    facts: Mapping[str, CertificateFact]
    conflict: str = ""
    repeat_s: float | None = None


class _Pass(NamedTuple):
    """The result of the last complete pass. `inputs`: versions of all that it has read."""

    inputs: tuple[tuple[CertificateUse, ...], tuple[str, ...]]
    facts: Mapping[str, CertificateFact]
    annotation: str
    digest: str


class GatewayCertificates:
    """One Gateway is reconciled by one thread at a time."""

    def __init__(
        self,
        client: ObjectClient,
        watches: Watches,
        secrets: CertificateWatches,
        objects: GatewayObjects,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is monotonic, in seconds."""
        self._client = client
        self._watches = watches
        self._secrets = secrets
        self._objects = objects
        self._clock = clock
        self._done: dict[Ref, _Pass] = {}
        self._users: dict[Ref, frozenset[Ref]] = {}  # what each Gateway refers to
        self._written: dict[Ref, float] = {}  # when
        self._touched: dict[Ref, tuple[str, float]] = {}  # pods: digest, when

    def users(self, ref: Ref) -> list[Ref]:
        """The Gateways that refer to a Secret or ConfigMap, or whose own Secret it is."""
        return [gateway for gateway, found in list(self._users.items()) if ref in found]

    def reconcile(
        self, obj: Object, gateway: L7Object, uses: tuple[CertificateUse, ...]
    ) -> CertificateState:
        """Bring the Secret and the annotations up to date. Raises ApiError."""
        ref = Ref("Gateway", gateway.namespace, gateway.name)
        own = Ref("Secret", gateway.namespace, certificates_name(gateway))
        sources = list(dict.fromkeys(source for use in uses for source in use.sources))
        self._users[ref] = frozenset({own, *map(_ref, sources)})
        self._prune(gateway, own)
        if not self._secrets.is_readable(own):
            return CertificateState(_unreadable(obj, gateway, uses))
        inputs = uses, tuple(self._secrets.version(each) for each in (*map(_ref, sources), own))
        done = self._done.get(ref)
        wait_s = self._wait_s(ref, uses)
        if done is None or (done.inputs != inputs and wait_s <= 0):
            problem, repeat_s, done = self._write(obj, gateway, own, (uses, sources))
            if done is None:
                return CertificateState(_unreadable(obj, gateway, uses), problem, repeat_s)
            self._done[ref] = done
            inputs = done.inputs
        self._annotate(obj, done.annotation)
        repeat_s = self._touch_pods(gateway, done)
        if done.inputs != inputs:
            repeat_s = wait_s if repeat_s is None else min(wait_s, repeat_s)
        return CertificateState(done.facts, "", repeat_s)

    def _wait_s(self, gateway: Ref, uses: tuple[CertificateUse, ...]) -> float:
        """How long new versions of the same certificates must wait."""
        done = self._done.get(gateway)
        if done is None or done.inputs[0] != uses:
            return 0.0
        return self._written.get(gateway, 0.0) + MIN_INTERVAL_S - self._clock()

    def exist(self, namespace: str, name: str) -> bool:
        """Whether there is something to forget of a Gateway."""
        is_known = Ref("Gateway", namespace, name) in self._users
        return is_known or bool(self._existing(namespace, name))

    def forget(self, namespace: str, name: str) -> None:
        """A Gateway is gone, or of another class: delete its Secrets. Raises ApiError."""
        gateway = Ref("Gateway", namespace, name)
        self._users.pop(gateway, None)
        self._done.pop(gateway, None)
        self._written.pop(gateway, None)
        for secret in self._existing(namespace, name):
            self._objects.delete_secret(secret, name)

    def _prune(self, gateway: L7Object, own: Ref) -> None:
        """Delete the Secret of the class that the Gateway had before."""
        for secret in self._existing(gateway.namespace, gateway.name):
            if secret != own:
                self._objects.delete_secret(secret, gateway.name)

    def _existing(self, namespace: str, gateway: str) -> list[Ref]:
        """The Secrets that may belong to a Gateway."""
        secrets = [
            Ref("Secret", namespace, f"{each}-certificates") for each in possible_names(gateway)
        ]
        return [secret for secret in secrets if self._secrets.version(secret)]

    def _write(
        self,
        obj: Object,
        gateway: L7Object,
        own: Ref,
        wanted: tuple[tuple[CertificateUse, ...], list[CertificateSource]],
    ) -> tuple[str, float | None, _Pass | None]:
        """Write the Secret if it differs; returns why not, when to repeat, and the result."""
        uses, sources = wanted
        uid = str(obj["metadata"].get("uid") or "")
        current = self._client.get(own) if uses or self._secrets.version(own) else None
        if current is not None:
            problem, repeat_s = self._objects.check_owner(own, uid)
            if problem:
                return problem, repeat_s, None
        before = decoded(current)
        files: Files = {} if isinstance(before, Absent) else before
        versions = [self._secrets.version(_ref(each)) for each in sources]
        found = gateway_files(uses, self._read(sources), files)
        if found.files != files:
            current = self._client.apply(certificates_secret(gateway, uid, found.files))
            self._written[Ref("Gateway", *gateway.key[1:])] = self._clock()
            log.info(
                "gateway certificates written",
                gateway=f"{gateway.namespace}/{gateway.name}",
                certificates=sum(fact.usable for fact in found.facts.values()),
            )
        _log_errors(gateway, found, self._done.get(Ref("Gateway", *gateway.key[1:])))
        version = str((current or {}).get("metadata", {}).get("resourceVersion") or "")
        inputs = uses, (*versions, version)
        return "", None, _Pass(inputs, found.facts, found.annotation, found.digest)

    def _read(self, sources: Iterable[CertificateSource]) -> dict[CertificateSource, Data | Absent]:
        found: dict[CertificateSource, Data | Absent] = {}
        for source in sources:
            ref = _ref(source)
            if not self._secrets.is_readable(ref):
                found[source] = Absent.UNREADABLE
                continue
            if not self._secrets.version(ref):  # no request for each of many missing objects
                found[source] = Absent.MISSING
                continue
            try:
                found[source] = decoded(self._client.get(ref))
            except ApiError as error:
                if error.status != FORBIDDEN:
                    raise
                found[source] = Absent.UNREADABLE
        return found

    def _annotate(self, obj: Object, text: str) -> None:
        known = mapping(obj["metadata"].get("annotations")).get(GATEWAY_CERTIFICATES_ANNOTATION)
        if (known or "") != text:
            name = GATEWAY_CERTIFICATES_ANNOTATION
            self._client.set_annotation(obj, name, text, FIELD_MANAGER)

    def _touch_pods(self, gateway: L7Object, done: _Pass) -> float | None:
        """Annotate the pods twice; returns when to repeat."""
        repeat_s = None
        for pod in self._watches.objects(POD):
            metadata = pod["metadata"]
            labels = mapping(metadata.get("labels"))
            if (metadata.get("namespace"), labels.get(GATEWAY_LABEL)) != gateway.key[1:]:
                continue
            known = mapping(metadata.get("annotations")).get(POD_ANNOTATION, "")
            if known == done.digest + _SECOND or (not done.annotation and not known):
                continue
            ref = Ref(POD, gateway.namespace, metadata["name"])
            digest, at = self._touched.get(ref, ("", 0.0))
            if done.digest not in (known, digest):
                self._touched[ref] = done.digest, self._clock()
                self._client.set_pod_annotation(pod, POD_ANNOTATION, done.digest)
                repeat_s = SECOND_TOUCH_S
            elif self._clock() - at < SECOND_TOUCH_S:
                repeat_s = SECOND_TOUCH_S
            else:
                self._touched.pop(ref, None)
                self._client.set_pod_annotation(pod, POD_ANNOTATION, done.digest + _SECOND)
        return repeat_s


def _unreadable(
    obj: Object, gateway: L7Object, uses: Iterable[CertificateUse]
) -> dict[str, CertificateFact]:
    """The facts while the Secrets of the Gateway's namespace are not known."""
    known = mapping(obj["metadata"].get("annotations")).get(GATEWAY_CERTIFICATES_ANNOTATION, "")
    message = f"Secrets of namespace {gateway.namespace} are not readable{_NOT_READABLE}"
    return {
        use.file: CertificateFact(f'"{use.file}"' in known, CertificateError.UNREADABLE, message)
        for use in uses
    }


def _log_errors(gateway: L7Object, found: GatewayFiles, before: _Pass | None) -> None:
    for name, fact in found.facts.items():
        if fact.error is None or (before is not None and before.facts.get(name) == fact):
            continue
        log.warning(
            "gateway certificate not usable",
            gateway=f"{gateway.namespace}/{gateway.name}",
            error=fact.message,
        )


def _ref(source: CertificateSource) -> Ref:
    return Ref(source.kind, source.namespace, source.name)
