# SPDX-License-Identifier: Apache-2.0
"""The objects that run a Gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.l7.deployment import (
    DeploymentSettings,
    LiveState,
    gateway_problems,
    gateway_resources,
    parameters_name,
)
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Severity

Json = dict[str, Any]
SETTINGS = DeploymentSettings(proxy_image="example.com/envoy:1")


def waypoint(**spec: Any) -> L7Object:
    return l7_object(
        {
            "kind": "Gateway",
            "metadata": {"name": "way", "namespace": "shop"},
            "spec": {"gatewayClassName": "istio-waypoint", **spec},
        }
    )


def overlaid(**parameters: str) -> tuple[dict[str, Json], list[str]]:
    """The resources by kind with a ConfigMap, and the texts of the problems."""
    gateway = waypoint(infrastructure={"parametersRef": {"kind": "ConfigMap", "name": "more"}})
    live = LiveState(parameters=parameters)
    found = {obj["kind"]: obj for obj in gateway_resources(gateway, SETTINGS, live)}
    return found, [str(problem) for problem in gateway_problems(gateway, SETTINGS, live)]


def test_waypoint_has_account_deployment_and_service_of_its_name() -> None:
    objects = gateway_resources(waypoint(), SETTINGS, LiveState(uid="u1"))
    assert [obj["kind"] for obj in objects] == ["ServiceAccount", "Deployment", "Service"]
    for obj in objects:
        metadata = obj["metadata"]
        assert (metadata["namespace"], metadata["name"]) == ("shop", "way")
        assert metadata["labels"]["gateway.networking.k8s.io/gateway-name"] == "way"
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Gateway", "way", "u1")
    service = objects[2]["spec"]
    assert [(p["name"], p["port"], p["appProtocol"]) for p in service["ports"]] == [
        ("status-port", 15021, "tcp"),
        ("mesh", 15008, "hbone"),
    ]


def test_replicas_are_left_to_the_autoscaler() -> None:
    deployment = gateway_resources(waypoint(), SETTINGS)[1]
    assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize(("replicas", "has_budget"), [(1, False), (2, True)])
def test_disruption_budget_exists_with_more_than_one_replica(
    replicas: int, has_budget: bool
) -> None:
    objects = gateway_resources(waypoint(), SETTINGS, LiveState(replicas=replicas))
    assert ("PodDisruptionBudget" in [obj["kind"] for obj in objects]) is has_budget


def test_pod_has_no_privileges_and_is_enrolled() -> None:
    template = gateway_resources(waypoint(), SETTINGS)[1]["spec"]["template"]
    spec = template["spec"]
    (container,) = spec["containers"]
    assert template["metadata"]["labels"]["istio.io/dataplane-mode"] == "ambient"
    assert spec["serviceAccountName"] == "way"
    assert spec["automountServiceAccountToken"] is False
    assert "volumes" not in spec
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["image"] == "example.com/envoy:1"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["args"][container["args"].index("--concurrency") + 1] == "2"


def test_infrastructure_metadata_applies_to_all_objects_and_pods() -> None:
    gateway = waypoint(
        infrastructure={"labels": {"team": "a"}, "annotations": {"example.com/x": "y"}}
    )
    objects = gateway_resources(gateway, SETTINGS)
    template = objects[1]["spec"]["template"]
    for metadata in [*(obj["metadata"] for obj in objects), template["metadata"]]:
        assert metadata["labels"]["team"] == "a"
        assert metadata["annotations"]["example.com/x"] == "y"
    assert gateway_problems(gateway, SETTINGS) == ()


@pytest.mark.parametrize(
    "infrastructure",
    [
        {"labels": {"istio.io/dataplane-mode": "none"}},
        {"labels": {"gateway.networking.k8s.io/gateway-name": "other"}},
        {"annotations": {"sidecar.istio.io/status": "{}"}},
        {"annotations": {"ztunnel.dev/rejected-config": "{}"}},
    ],
)
def test_metadata_of_the_mesh_cannot_be_overridden(infrastructure: Json) -> None:
    gateway = waypoint(infrastructure=infrastructure)
    (problem,) = gateway_problems(gateway, SETTINGS)
    assert problem.severity is Severity.IGNORED
    assert gateway_resources(gateway, SETTINGS) == gateway_resources(waypoint(), SETTINGS)


def test_overlay_of_the_deployment_is_merged_by_container_name() -> None:
    found, problems = overlaid(
        deployment="""
        spec:
          replicas: 3
          template:
            spec:
              nodeSelector: {disk: fast}
              containers:
              - name: istio-proxy
                resources: {limits: {cpu: 500m, memory: 256Mi}}
        """
    )
    spec = found["Deployment"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert problems == []
    assert spec["replicas"] == 3
    assert spec["template"]["spec"]["nodeSelector"] == {"disk": "fast"}
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": "256Mi"}
    assert container["resources"]["requests"]["cpu"] == "100m"
    assert container["args"][container["args"].index("--concurrency") + 1] == "1"
    heap = json.loads(container["args"][1])["overload_manager"]["resource_monitors"][1]
    assert heap["typed_config"]["max_heap_size_bytes"] == int(256 * 2**20 * 0.9)
    assert "PodDisruptionBudget" in found


def test_autoscaler_exists_if_the_overlay_has_one() -> None:
    found, problems = overlaid(
        horizontalPodAutoscaler="spec: {minReplicas: 2, maxReplicas: 5}",
    )
    spec = found["HorizontalPodAutoscaler"]["spec"]
    assert problems == []
    assert spec["scaleTargetRef"]["name"] == "way"
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(
    "spec",
    [
        "{hostNetwork: true}",
        "{serviceAccountName: admin}",
        "{volumes: [{name: a, hostPath: {path: /}}]}",
        "{containers: [{name: istio-proxy, image: evil}]}",
        "{containers: [{name: istio-proxy, securityContext: {privileged: true}}]}",
        "{containers: [{name: istio-proxy, command: [sh]}]}",
        "{containers: [{name: second, resources: {}}]}",
        "{containers: null}",
        "{initContainers: [{name: a}]}",
    ],
)
def test_overlay_cannot_change_what_the_pod_runs(spec: str) -> None:
    found, problems = overlaid(deployment=f"spec: {{template: {{spec: {spec}}}}}")
    base = {obj["kind"]: obj for obj in gateway_resources(waypoint(), SETTINGS)}
    assert found["Deployment"] == base["Deployment"]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("[1]", "not a mapping"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: " + "[" * 50 + "]" * 50, "nested"),
        ("a: " + "[" * 30000, "not YAML"),
        ("a: !!int ''", "not YAML"),
        ("a: !!bool x", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ("a: " + "x" * 70000, "bytes"),
    ],
)
def test_unusable_overlay_is_an_error(text: str, message: str) -> None:
    _, problems = overlaid(deployment=text)
    assert message in problems[0]


def test_missing_config_map_and_unknown_reference_are_errors() -> None:
    for reference, text in (
        ({"kind": "ConfigMap", "name": "gone"}, "does not exist"),
        ({"group": "example.com", "kind": "Config", "name": "gone"}, "only a ConfigMap"),
    ):
        gateway = waypoint(infrastructure={"parametersRef": reference})
        (problem,) = gateway_problems(gateway, SETTINGS, LiveState(parameters=None))
        assert problem.severity is Severity.ERROR
        assert text in problem.message
    assert parameters_name(gateway) == ""


_KEYS = [
    "metadata",
    "labels",
    "annotations",
    "spec",
    "template",
    "containers",
    "resources",
    "limits",
]
_KEYS += ["name", "replicas", "minReplicas", "cpu"]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_VALUES, st.sampled_from(["deployment", "service", "horizontalPodAutoscaler"]))
def test_any_overlay_leaves_the_identity_of_the_gateway(value: Any, key: str) -> None:
    found, _ = overlaid(**{key: json.dumps(value)})
    template = found["Deployment"]["spec"]["template"]
    assert template["metadata"]["labels"]["istio.io/dataplane-mode"] == "ambient"
    assert template["spec"]["serviceAccountName"] == "way"
    assert [each["name"] for each in template["spec"]["containers"]] == ["istio-proxy"]
    for obj in found.values():
        assert obj["metadata"]["name"] == "way"
