# SPDX-License-Identifier: Apache-2.0
"""The controller's copies of certificates: what is read, written, annotated and logged."""

from __future__ import annotations

import base64
import json
from typing import Any, cast

import structlog
from structlog.testing import capture_logs

from tests.support.certificates import server_pair
from ztunnel.controller.l7.gateways.certificate_watches import CertificateWatches
from ztunnel.controller.l7.gateways.certificates import (
    MIN_INTERVAL_S,
    POD_ANNOTATION,
    SECOND_TOUCH_S,
    CertificateState,
    GatewayCertificates,
)
from ztunnel.controller.l7.gateways.objects import GatewayObjects
from ztunnel.controller.l7.object_client import ObjectClient, Ref, ref_of
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.client.request import FORBIDDEN, ApiError
from ztunnel.l7.deployment.certificates import certificate_use
from ztunnel.l7.names import CertificateSource
from ztunnel.l7.objects import l7_object
from ztunnel.l7.status.facts import CertificateError

Json = dict[str, Any]
WEB = CertificateSource("Secret", "shop", "web")
USE = certificate_use(WEB)
OWN = Ref("Secret", "shop", "edge-istio-certificates")
ANNOTATION = "ztunnel.dev/gateway-certificates"


class Cluster:
    """An API server with a watch that may lag behind; counts what the controller does."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Json] = {}
        self.versions: dict[Ref, str] = {}  # as the watch has them
        self.forbidden: set[Ref] = set()
        self.reads: list[Ref] = []
        self.annotations: list[str] = []
        self.touches: list[str] = []
        self.pods: list[Json] = []
        self.readable = True
        self._number = 0

    # ObjectClient

    def get(self, ref: Ref) -> Json | None:
        self.reads.append(ref)
        if ref in self.forbidden:
            raise ApiError(FORBIDDEN, "forbidden")
        return self.objects.get(ref)

    def apply(self, obj: Json) -> Json:
        self._number += 1
        metadata = {**obj["metadata"], "resourceVersion": f"v{self._number}"}
        self.objects[ref_of(obj)] = {**obj, "metadata": metadata}
        return self.objects[ref_of(obj)]

    def set_annotation(self, _obj: Json, name: str, value: str, _manager: str) -> bool:
        assert name == ANNOTATION
        self.annotations.append(value)
        return True

    def set_pod_annotation(self, pod: Json, name: str, value: str) -> None:
        assert name == POD_ANNOTATION
        self.touches.append(value)
        pod["metadata"]["annotations"] = {name: value}

    # CertificateWatches

    def is_readable(self, _ref: Ref) -> bool:
        return self.readable

    def version(self, ref: Ref) -> str:
        return self.versions.get(ref, "")

    def see(self) -> None:
        """The watch catches up."""
        self.versions = {
            ref: obj["metadata"]["resourceVersion"] for ref, obj in self.objects.items()
        }


class Rig:
    def __init__(self) -> None:
        self.cluster = Cluster()
        self.now = 100.0
        client = cast("ObjectClient", self.cluster)
        watches = cast("Watches", self)
        self.certificates = GatewayCertificates(
            client,
            watches,
            cast("CertificateWatches", self.cluster),
            GatewayObjects(client, watches),
            lambda: self.now,
        )
        self.gateway: Json = {
            "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": "shop", "uid": "u1"},
            "spec": {"gatewayClassName": "istio"},
        }

    def objects(self, _kind: str) -> list[Json]:
        return self.cluster.pods

    def of(self, _ref: Ref) -> None:
        return None

    def put(self, chain: bytes, key: bytes) -> None:
        data = {"tls.crt": chain, "tls.key": key}
        encoded = {name: base64.b64encode(each).decode() for name, each in data.items()}
        metadata = {"namespace": "shop", "name": "web"}
        self.cluster.apply({"kind": "Secret", "metadata": metadata, "data": encoded})
        self.cluster.see()

    def reconcile(self, *uses: Any) -> CertificateState:
        return self.certificates.reconcile(
            self.gateway, l7_object(self.gateway), tuple(uses) or (USE,)
        )

    def written(self) -> dict[str, bytes]:
        data = self.cluster.objects[OWN]["data"]
        return {name: base64.b64decode(each) for name, each in data.items()}


def test_data_is_read_again_only_if_an_object_has_changed() -> None:
    rig = Rig()
    rig.put(*server_pair("web.example.com"))
    rig.reconcile()
    rig.cluster.see()
    rig.now += MIN_INTERVAL_S
    rig.reconcile()
    rig.cluster.reads.clear()
    for _ in range(5):
        assert rig.reconcile().facts[USE.file].usable
    assert rig.cluster.reads == []
    rig.put(*server_pair("web.example.com"))
    rig.reconcile()
    assert rig.cluster.reads.count(Ref(*WEB)) == 1


def test_previous_version_is_found_although_the_watch_has_not_seen_the_secret() -> None:
    rig = Rig()
    chain, key = server_pair("web.example.com")
    rig.put(chain, key)
    rig.reconcile()
    seen = dict(rig.cluster.versions)
    rig.now += MIN_INTERVAL_S
    rig.put(chain, server_pair("web.example.com")[1])  # does not fit
    rig.cluster.versions = {**seen, Ref(*WEB): "later"}  # and not the written Secret
    fact = rig.reconcile().facts[USE.file]
    assert (fact.usable, fact.error) == (True, CertificateError.INVALID)
    assert rig.written()[USE.file] == chain


def test_secret_that_changes_in_a_loop_is_copied_once_per_second() -> None:
    rig = Rig()
    pairs = [server_pair("web.example.com") for _ in range(5)]
    for pair in pairs:
        rig.put(*pair)
        state = rig.reconcile()
        assert rig.written()[USE.file] == pairs[0][0]
    assert state.repeat_s == MIN_INTERVAL_S
    rig.now += MIN_INTERVAL_S
    rig.reconcile()
    assert rig.written()[USE.file] == pairs[-1][0]


def test_listener_that_is_added_does_not_wait() -> None:
    rig = Rig()
    rig.put(*server_pair("web.example.com"))
    rig.reconcile()
    other = certificate_use(CertificateSource("Secret", "shop", "other"))
    fact = rig.reconcile(USE, other).facts[other.file]
    assert fact.error is CertificateError.MISSING


def test_annotation_lists_usable_certificates_after_the_secret_is_written() -> None:
    rig = Rig()
    rig.put(*server_pair("web.example.com"))
    rig.reconcile()
    (text,) = rig.cluster.annotations
    assert list(json.loads(text)) == [USE.file]
    rig.gateway["metadata"]["annotations"] = {ANNOTATION: text}
    rig.reconcile()
    assert len(rig.cluster.annotations) == 1


def test_pods_are_annotated_twice_with_time_between() -> None:
    rig = Rig()
    labels = {"gateway.networking.k8s.io/gateway-name": "edge"}
    metadata: Json = {"name": "edge-1", "namespace": "shop", "uid": "p1", "labels": labels}
    other: Json = {**metadata, "name": "other-1", "labels": {}}
    rig.cluster.pods = [{"metadata": metadata}, {"metadata": other}]
    rig.put(*server_pair("web.example.com"))
    assert rig.reconcile().repeat_s == SECOND_TOUCH_S
    assert rig.reconcile().repeat_s == SECOND_TOUCH_S
    assert len(rig.cluster.touches) == 1
    rig.now += SECOND_TOUCH_S
    assert rig.reconcile().repeat_s is None
    first, second = rig.cluster.touches
    assert second == f"{first}/2"
    rig.reconcile()
    assert len(rig.cluster.touches) == 2
    assert "annotations" not in other


def test_source_that_may_not_be_read_leaves_the_certificate_in_use() -> None:
    rig = Rig()
    rig.put(*server_pair("web.example.com"))
    rig.reconcile()
    before = rig.written()
    rig.put(*server_pair("web.example.com"))
    rig.cluster.forbidden.add(Ref(*WEB))
    rig.now += MIN_INTERVAL_S
    fact = rig.reconcile().facts[USE.file]
    assert (fact.usable, fact.error) == (True, CertificateError.UNREADABLE)
    assert rig.written() == before


def test_nothing_is_written_while_secrets_are_not_listed() -> None:
    rig = Rig()
    rig.put(*server_pair("web.example.com"))
    rig.cluster.readable = False
    rig.gateway["metadata"]["annotations"] = {ANNOTATION: json.dumps({USE.file: "digest"})}
    fact = rig.reconcile().facts[USE.file]
    assert (fact.usable, fact.error) == (True, CertificateError.UNREADABLE)
    assert rig.cluster.annotations == []
    assert OWN not in rig.cluster.objects


def test_secret_of_another_owner_is_a_conflict() -> None:
    rig = Rig()
    rig.cluster.apply({"kind": "Secret", "metadata": {"namespace": "shop", "name": OWN.name}})
    rig.put(*server_pair("web.example.com"))
    state = rig.reconcile()
    assert "does not belong to the Gateway" in state.conflict
    assert "data" not in rig.cluster.objects[OWN]


def test_keys_are_neither_logged_nor_in_annotations_nor_in_facts() -> None:
    rig = Rig()
    structlog.reset_defaults()
    chain, key = server_pair("web.example.com")
    secret = "".join(key.decode().splitlines()[1:-1])
    with capture_logs() as lines:
        rig.put(chain, key)
        good = rig.reconcile()
        rig.now += MIN_INTERVAL_S
        rig.put(chain, key[:-40])
        rig.reconcile()
        rig.put(key, key)
        bad = rig.reconcile()
    shown = json.dumps([lines, rig.cluster.annotations, str(good), str(bad)], default=str)
    assert bad.facts[USE.file].error is CertificateError.INVALID
    assert [line["event"] for line in lines].count("gateway certificate not usable") == 2
    assert not any(secret[at : at + 24] in shown for at in range(0, len(secret) - 24, 8))
