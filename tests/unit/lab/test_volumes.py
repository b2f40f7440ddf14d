# SPDX-License-Identifier: Apache-2.0
"""Volumes of the lab's pods."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from ztunnel.lab.objects import Key, Object
from ztunnel.lab.runtime import volumes

KEY = Key("Secret", "shop", "tls")


def pod(**source: object) -> Object:
    mount = {"name": "certificates", "mountPath": "/etc/ztunnel/gateway-certificates"}
    spec = {
        "volumes": [{"name": "certificates", **source}],
        "containers": [
            {
                "name": "c",
                "volumeMounts": [mount],
                "securityContext": {"runAsUser": os.getuid()},
            }
        ],
    }
    return {"kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}


def secret(**data: str) -> dict[Key, Object]:
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
    return {KEY: {"kind": "Secret", "metadata": {"name": "tls"}, "data": encoded}}


SECRET_POD = pod(secret={"secretName": "tls", "optional": True})


def files(tmp_path: Path) -> dict[str, str]:
    directory = volumes.directory_of(tmp_path, "certificates")
    return {p.name: p.read_text() for p in directory.iterdir() if not p.name.startswith("..")}


def test_changed_secret_is_replaced_by_a_rename_of_the_data_link(tmp_path: Path) -> None:
    volumes.sync(tmp_path, SECRET_POD, secret(a="1", b="2"))
    directory = volumes.directory_of(tmp_path, "certificates")
    first = os.readlink(directory / "..data")
    assert files(tmp_path) == {"a": "1", "b": "2"}
    volumes.sync(tmp_path, SECRET_POD, secret(a="3", c="4"))
    assert os.readlink(directory / "..data") != first
    assert files(tmp_path) == {"a": "3", "c": "4"}
    assert not (directory / first).exists()


def test_unchanged_secret_is_not_written(tmp_path: Path) -> None:
    volumes.sync(tmp_path, SECRET_POD, secret(a="1"))
    link = volumes.directory_of(tmp_path, "certificates") / "..data"
    before = os.readlink(link)
    volumes.sync(tmp_path, SECRET_POD, secret(a="1"))
    assert os.readlink(link) == before


def test_files_are_readable_by_the_user_of_the_pod_only(tmp_path: Path) -> None:
    volumes.sync(tmp_path, SECRET_POD, secret(a="1"))
    directory = volumes.directory_of(tmp_path, "certificates")
    found = (directory / "a").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, os.getuid())
    assert directory.stat().st_mode & 0o777 == 0o700


def test_missing_optional_secret_is_an_empty_directory(tmp_path: Path) -> None:
    volumes.sync(tmp_path, SECRET_POD, {})
    assert files(tmp_path) == {}
    volumes.sync(tmp_path, SECRET_POD, secret(a="1"))
    assert files(tmp_path) == {"a": "1"}


def test_missing_required_secret_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(volumes.VolumeError, match="'tls'"):
        volumes.sync(tmp_path, pod(secret={"secretName": "tls"}), {})


def test_other_volumes_are_reported() -> None:
    assert volumes.mounts(pod(emptyDir={})) == []
    assert list(volumes.problems(pod(emptyDir={}))) == [
        "volume 'certificates' is ignored: only secret and configMap are supported"
    ]
    assert list(volumes.problems(SECRET_POD)) == []


def test_missing_mount_point_is_added_below_its_nearest_parent(tmp_path: Path) -> None:
    existing = tmp_path / "etc"
    existing.mkdir()
    found = volumes.missing_parents(tmp_path, [existing / "a" / "b", existing])
    assert [parent for parent, _ in found] == [existing]
    assert (found[0][1] / "a" / "b").is_dir()
