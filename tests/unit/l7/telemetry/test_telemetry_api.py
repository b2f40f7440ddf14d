# SPDX-License-Identifier: Apache-2.0
"""Telemetry objects: levels, overrides, and what is reported as not honoured."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.envoy.telemetry.running import telemetry
from tests.support.waypoint.world import World
from ztunnel.l7.api.istio.telemetry import parse_telemetry
from ztunnel.l7.inputs import Destination, Protocol, Settings
from ztunnel.l7.objects import l7_object
from ztunnel.l7.problems import Severity
from ztunnel.l7.telemetry.effective import Effective, effective_telemetry, telemetry_problems
from ztunnel.l7.telemetry.metrics import Metric

ROOT = "istio-system"
GATEWAY = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}
SERVICE = {"group": "", "kind": "Service", "name": "web"}


def effective(*objects: dict[str, Any], settings: Settings | None = None) -> Effective:
    world = World()
    world.settings = settings or world.settings
    world.service("web", namespace="shop")
    for obj in objects:
        world.add(obj)
    service = world.mesh.state.service("shop/web")
    assert service is not None
    destination = Destination(
        gateway="default/waypoint",
        protocol=Protocol.HTTP,
        service=service,
        port=service.ports[0],
    )
    return effective_telemetry(world.inputs, destination)


def log(*, disabled: bool = False, expression: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"disabled": disabled}
    return found | ({"filter": {"expression": expression}} if expression else {})


def test_levels_override_from_root_namespace_to_service() -> None:
    root = telemetry({"accessLogging": [log()]}, "root", ROOT)
    own = telemetry({"accessLogging": [log(disabled=True)]}, "own", "default")
    gateway = telemetry({"accessLogging": [log()], "targetRefs": [GATEWAY]}, "gw", "default")
    service = telemetry(
        {"accessLogging": [log(disabled=True)], "targetRefs": [SERVICE]}, "svc", "shop"
    )
    assert [
        effective().logs,
        effective(root).logs,
        effective(root, own).logs,
        effective(root, own, gateway).logs,
        effective(service, gateway, own, root).logs,
    ] == [False, True, False, True, False]


def test_objects_of_other_namespaces_and_targets_do_not_apply() -> None:
    entry = {"accessLogging": [log()]}
    for obj in (
        telemetry(entry, namespace="shop"),  # the service's namespace is not the waypoint's
        telemetry({**entry, "targetRefs": [{**GATEWAY, "name": "other"}]}),
        telemetry({**entry, "targetRefs": [{**SERVICE, "name": "other"}]}, namespace="shop"),
        telemetry({**entry, "selector": {"matchLabels": {"app": "web"}}}),
    ):
        assert not effective(obj).logs


def test_oldest_object_of_a_namespace_applies_and_others_are_reported() -> None:
    old = telemetry({"accessLogging": [log()]}, "b", created="2026-01-01T00:00:00Z")
    new = telemetry({"accessLogging": [log(disabled=True)]}, "a", created="2026-02-01T00:00:00Z")
    assert effective(new, old).logs
    world = World().add(new).add(old)
    (problem,) = telemetry_problems(world.inputs)
    assert (problem.name, problem.reason, problem.severity) == ("a", "Conflicted", "ignored")


def test_metrics_are_overridden_one_by_one() -> None:
    off = {"metrics": [{"overrides": [{"disabled": True}]}]}
    on = {"metrics": [{"overrides": [{"match": {"metric": "REQUEST_COUNT"}, "disabled": False}]}]}
    assert effective(telemetry(off, "root", ROOT)).tags == {}
    found = effective(telemetry(off, "root", ROOT), telemetry(on))
    assert list(found.tags) == [Metric.REQUEST_COUNT]


def test_entries_for_clients_do_not_apply_and_are_reported() -> None:
    spec = {"accessLogging": [log() | {"match": {"mode": "CLIENT"}}]}
    assert not effective(telemetry(spec)).logs
    (problem,) = parse_telemetry(l7_object(telemetry(spec))).problems
    assert problem.field == "spec.accessLogging[0].match.mode"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"selector": {"matchLabels": {}}}, "spec.selector"),
        ({"metrics": [{"reportingInterval": "5s"}]}, "spec.metrics[0].reportingInterval"),
        ({"metrics": [{"providers": [{"name": "stackdriver"}]}]}, "spec.metrics[0].providers"),
        (
            {"metrics": [{"overrides": [{"tagOverrides": {"a": {"value": "f(x)"}}}]}]},
            "spec.metrics[0].overrides[0].tagOverrides.a.value",
        ),
        (
            {"accessLogging": [{"filter": {"expression": "f("}}]},
            "spec.accessLogging[0].filter.expression",
        ),
        ({"tracing": [{"enableIstioTags": True}]}, "spec.tracing[0].enableIstioTags"),
        (
            {"tracing": [{"providers": [{"name": "a"}, {"name": "b"}]}]},
            "spec.tracing[0].providers",
        ),
        (
            {"tracing": [{"customTags": {"t": {"environment": {"name": "A"}}}}]},
            "spec.tracing[0].customTags.t",
        ),
    ],
)
def test_fields_without_effect_are_reported(spec: dict[str, Any], field: str) -> None:
    found = parse_telemetry(l7_object(telemetry(spec)))
    assert [problem.field for problem in found.problems] == [field]
    assert found.problems[0].severity in (Severity.IGNORED, Severity.WARNING)


@pytest.mark.parametrize(
    "spec",
    [
        {"accessLogging": "on"},
        {"accessLogging": [{"disabled": "yes"}]},
        {"unknown": 1},
        {"metrics": [{"overrides": [{"match": {"metric": "NO_SUCH"}}]}]},
        {"metrics": [{"overrides": [{"match": {"mode": "NO_SUCH"}}]}]},
        {"tracing": [{"randomSamplingPercentage": 101}]},
        {"targetRefs": [{"kind": "Pod", "name": "a"}]},
        {"targetRefs": [{**SERVICE, "namespace": "elsewhere"}]},
    ],
)
def test_invalid_object_has_no_effect_and_is_reported(spec: dict[str, Any]) -> None:
    obj = telemetry({"accessLogging": [log()], **spec})
    (problem,) = parse_telemetry(l7_object(obj)).problems
    assert problem.severity is Severity.ERROR
    assert not effective(obj).logs


def test_tracing_without_provider_is_reported() -> None:
    world = World().add(telemetry({"tracing": [{"randomSamplingPercentage": 5}]}))
    (problem,) = telemetry_problems(world.inputs)
    assert problem.field == "spec.tracing"
    world.settings = Settings(otlp_endpoint="otel:4317")
    assert telemetry_problems(world.inputs) == ()
    world.add(telemetry({"tracing": [{"providers": [{"name": "zipkin"}]}]}, namespace="other"))
    (problem,) = telemetry_problems(world.inputs)
    assert "'zipkin'" in problem.message


def test_mesh_config_has_the_defaults_of_logs_and_traces() -> None:
    provider = {"name": "otel", "opentelemetry": {"service": "obs/otel.obs.svc", "port": 4317}}
    mesh = {
        "accessLogFile": "/dev/stdout",
        "accessLogEncoding": "JSON",
        "extensionProviders": [provider, {"name": "other", "zipkin": {}}, {"name": 1}],
        "defaultProviders": {"tracing": ["otel"]},
        "defaultConfig": {"tracing": {"sampling": 42}},
    }
    found = effective(settings=Settings(mesh_config=mesh))
    assert (found.logs, found.log_encoding) == (True, "json")
    assert found.spans is not None
    assert (found.spans.collector, found.spans.sampling_percent) == ("ztunnel.tracing|otel", 42)


@pytest.mark.parametrize(
    "mesh", [{"extensionProviders": 1}, {"defaultProviders": []}, {"accessLogFile": {}}]
)
def test_invalid_mesh_config_counts_as_absent(mesh: dict[str, Any]) -> None:
    found = effective(settings=Settings(mesh_config=mesh))
    assert not found.logs
    assert found.spans is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_NAMES = ("tracing", "metrics", "accessLogging", "targetRefs", "providers", "overrides", "match")


@given(
    st.dictionaries(
        st.sampled_from(_NAMES),
        _JSON | st.lists(st.dictionaries(st.sampled_from(_NAMES), _JSON), max_size=2),
    )
)
def test_any_spec_yields_a_result_or_problems(spec: dict[str, Any]) -> None:
    parse_telemetry(l7_object(telemetry(spec)))
