# SPDX-License-Identifier: Apache-2.0
"""The lab's manifests, object directory, names and images."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.lab import demo_manifests
from ztunnel.lab.cluster.admission import admit
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Key, Object, ObjectStore, key_of, read_manifests
from ztunnel.lab.runtime import images

POLICY: Object = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "deny", "namespace": "shop"},
    "spec": {"action": "DENY", "rules": [{}]},
}


def test_demo_has_client_deployment_service_and_enrolled_namespace() -> None:
    found = {str(key_of(obj)) for obj in read_manifests([demo_manifests()])}
    assert found == {
        "Namespace default",
        "Pod default/client",
        "Deployment default/my-app",
        "Service default/my-app",
    }


def test_lists_and_documents_are_flattened(tmp_path: Path) -> None:
    manifest = tmp_path / "all.yaml"
    manifest.write_text(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n"
        "{apiVersion: v1, kind: Namespace, metadata: {name: b}}\n---\n"
    )
    keys = [key_of(obj) for obj in read_manifests([tmp_path])]
    assert keys == [Key("Service", "default", "a"), Key("Namespace", "", "b")]


POD: Object = {"metadata": {"name": "p"}, "spec": {}}


@pytest.mark.parametrize("text", ["kind: Pod\n", "- 1\n", "a: [\n"])
def test_invalid_manifest_is_an_error_with_its_path(tmp_path: Path, text: str) -> None:
    manifest = tmp_path / "bad.yaml"
    manifest.write_text(text)
    with pytest.raises(LabError, match=r"bad\.yaml"):
        read_manifests([manifest])


def test_unknown_kinds_are_stored_unchanged(tmp_path: Path) -> None:
    objects = ObjectStore(tmp_path, tmp_path / "secrets")
    assert objects.put(POLICY)
    assert objects.load() == {Key("AuthorizationPolicy", "shop", "deny"): POLICY}


def test_unchanged_object_is_not_written_again(tmp_path: Path) -> None:
    objects = ObjectStore(tmp_path, tmp_path / "secrets")
    objects.put(POLICY)
    assert not objects.put(POLICY)
    assert objects.remove(key_of(POLICY))
    assert not objects.remove(key_of(POLICY))
    assert not list(tmp_path.iterdir())


SECRET: Object = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "tls", "namespace": "shop"},
    "stringData": {"tls.key": "key"},
}


def test_secrets_are_readable_by_root_only_and_not_among_the_objects(tmp_path: Path) -> None:
    objects = ObjectStore(tmp_path / "objects", tmp_path / "secrets")
    objects.put(POLICY)
    objects.put(SECRET)
    assert objects.load()[Key("Secret", "shop", "tls")] == SECRET
    assert len(list((tmp_path / "objects").iterdir())) == 1
    (path,) = (tmp_path / "secrets").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert objects.remove(key_of(SECRET))
    assert not path.exists()


def test_text_of_a_secret_becomes_data() -> None:
    stored = admit(SECRET, None, lambda: "uid", "now")
    assert stored["data"] == {"tls.key": "a2V5"}
    assert "stringData" not in stored


def test_invalid_secret_is_an_error_without_its_value() -> None:
    with pytest.raises(LabError, match="is not base64") as caught:
        admit({**SECRET, "data": {"tls.crt": "!!!"}, "stringData": {}}, None, lambda: "u", "now")
    assert "!!!" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a-b", "A", "1a", "x" * 17, "../x"])
def test_ambiguous_lab_names_are_rejected(name: str) -> None:
    with pytest.raises(LabError, match="not usable"):
        LabNames(name, Path("/sys/fs/cgroup"))


def test_long_pod_names_have_distinct_namespaces() -> None:
    names = LabNames("lab", Path("/sys/fs/cgroup"))
    one, two = (names.pod_netns("default", "x" * 80 + end) for end in "ab")
    assert one != two
    assert len(one) <= 60
    assert one.startswith("ztlab-default-")


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("nginx", "nginx"),
        ("nginx:latest", "nginx"),
        ("docker.io/library/nginx:1.27@sha256:abc", "nginx"),
        ("registry:5000/team/app", "app"),
    ],
)
def test_images_are_identified_by_their_base_name(image: str, name: str) -> None:
    assert images.base_name(image) == name


def test_command_and_args_of_the_container_take_precedence() -> None:
    container = {"name": "c", "image": "whatever", "command": ["echo"], "args": [1]}
    assert images.argv(container, POD, {}) == ["echo", "1"]


def test_config_map_adds_images() -> None:
    config = {
        "kind": "ConfigMap",
        "metadata": {"name": "ztunnel-lab-images", "namespace": "default"},
        "data": {"app": 'exec ./app "$@"'},
    }
    table = images.user_commands({key_of(config): config})
    argv = images.argv({"name": "c", "image": "team/app:2", "args": ["-v"]}, POD, table)
    assert argv == ["sh", "-c", 'exec ./app "$@"', "app", "-v"]


def test_unknown_image_without_command_is_an_error_with_hint() -> None:
    with pytest.raises(images.UnknownImageError, match="ztunnel-lab-images"):
        images.argv({"name": "c", "image": "mystery"}, POD, {})


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("at $(IP):80", "at 10.0.0.1:80"),
        ("$$(IP)", "$(IP)"),
        ("$(date) $(OTHER) $IP", "$(date) $(OTHER) $IP"),
    ],
)
def test_declared_variables_are_expanded_in_the_command(word: str, result: str) -> None:
    container = {
        "name": "c",
        "command": ["echo", word],
        "env": [{"name": "IP", "value": "10.0.0.1"}],
    }
    assert images.argv(container, POD, {}) == ["echo", result]


def test_downward_api_fields_are_in_the_environment() -> None:
    container = {
        "name": "c",
        "image": "x",
        "env": [
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        ],
    }
    pod: Object = {
        "metadata": {"name": "p", "labels": {"app": "web"}},
        "spec": {},
        "status": {"podIP": "10.0.0.1"},
    }
    found = images.environment(container, pod)
    assert (found["IP"], found["APP"], found["HOSTNAME"]) == ("10.0.0.1", "web", "p")
