# SPDX-License-Identifier: Apache-2.0
"""The image definition matches the tree. `scripts/image` builds it, tests/node runs it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text("utf-8")


def _copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+)$", CONTAINERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert _copied()
    for source in _copied():
        assert (ROOT / source).exists(), source
        assert source.partition("/")[0] in sent or source in sent, source


def test_all_sources_of_the_package_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {path.split("/")[0] for path in [*wheel["packages"], *wheel["force-include"]]}
    assert needed | {project["project"]["readme"], "pyproject.toml"} <= set(_copied())


def test_every_package_of_the_images_is_verified_by_hash() -> None:
    for name, lock in (("Containerfile", "requirements.txt"), ("Containerfile.envoy", "")):
        text = (ROOT / "deploy" / name).read_text("utf-8")
        for line in re.findall(r"pip install (.*)$", text, re.MULTILINE):
            assert "--require-hashes -r " in line or "--no-index" in line, line
        assert lock in text


def test_the_locked_versions_satisfy_the_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = ("kubernetes", "gateway", "tracing", "compiled")
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    text = (ROOT / "deploy" / "requirements.txt").read_text("utf-8")
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        hint = "; hint: run scripts/lock"
        assert version is not None, f"{requirement.name} is not locked{hint}"
        assert requirement.specifier.contains(version), (
            f"{requirement} is locked at {version}{hint}"
        )


def test_commands_of_the_manifests_are_in_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert {"ztunnel", "ztctl"} <= set(project["project"]["scripts"])
    entrypoint = ["/opt/ztunnel/bin/python", "-P", "-I", "-m", "ztunnel.main"]
    assert f"ENTRYPOINT {json.dumps(entrypoint)}" in CONTAINERFILE
    for name in ("agent", "proxy", "gateway", "controller"):
        for obj in yaml.safe_load_all((ROOT / "deploy" / f"{name}.yaml").read_text("utf-8")):
            for container in obj["spec"].get("template", {}).get("spec", {}).get("containers", []):
                assert "command" not in container  # of the entry point
                assert container["args"][0] == name
