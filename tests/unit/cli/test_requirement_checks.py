# SPDX-License-Identifier: Apache-2.0
"""The checks of `ztctl check`: results, hints, and the exit code."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.unit.cli.conftest import Ztctl
from ztctl.commands import check
from ztctl.node import requirement_checks
from ztctl.node.requirement_checks import CheckResult, Status
from ztunnel.datapath import requirements


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.1.0-31-amd64", Status.OK),
        ("5.18.0", Status.OK),
        ("5.14.0-503.el9.x86_64", Status.WARN),
        ("4.19.0", Status.WARN),
    ],
)
def test_kernel_version_only_warns(release: str, status: Status) -> None:
    result = requirement_checks.kernel(release)
    assert (result.status, result.result) == (status, release)
    assert bool(result.hint) == (status is Status.WARN)


def test_openssl_version_is_that_of_the_proxy() -> None:
    assert requirement_checks.openssl().result in SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()


def test_unrelated_package_named_bcc_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    result = requirement_checks.bcc()
    assert result.status is Status.FAIL
    assert "another project" in result.result
    assert "python3-bpfcc" in result.hint


def test_every_failed_check_has_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_root() -> Path:
        raise requirements.RequirementError("no cgroup v2 mount found", "mount one")

    monkeypatch.setattr(requirements, "cgroup2_root", no_root)
    monkeypatch.setattr(requirements, "missing_capabilities", lambda: ["CAP_BPF"])
    monkeypatch.setattr(
        requirements,
        "bpffs_mount",
        lambda: requirements.BpffsMount(mounted=False, point=Path("/sys/fs/bpf")),
    )
    monkeypatch.setattr(requirements, "has_btf", lambda: False)
    monkeypatch.setattr(requirements, "kernel_headers", lambda: None)
    failed = {
        result.check: result
        for result in requirement_checks.run_checks()
        if result.status is Status.FAIL
    }
    expected = {"capabilities", "cgroup v2 root", "bpffs", "BTF", "kernel headers"}
    assert expected <= set(failed)
    assert all(result.hint for result in failed.values())
    assert failed["cgroup v2 root"].hint == "mount one"


def test_failed_check_fails_the_command_and_skips_the_probe(
    ztctl: Ztctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [CheckResult("bpffs", Status.FAIL, "none", "mount it")]
    monkeypatch.setattr(requirement_checks, "run_checks", lambda: iter(results))
    monkeypatch.setattr(check, "_probe", lambda: pytest.fail("probed"))
    done = ztctl("check")
    assert done.exit_code == 1
    assert "bpffs: mount it" in done.output
    assert "failed: bpffs" in done.output
    assert "skipped: a required check failed" in done.output


def test_warnings_do_not_fail_the_command(ztctl: Ztctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        requirement_checks,
        "run_checks",
        lambda: iter([CheckResult("IPv6", Status.WARN, "no", "x")]),
    )
    monkeypatch.setattr(check, "_probe", lambda: [CheckResult("programs", Status.OK, "all")])
    done = ztctl("check", "-o", "json")
    assert done.exit_code == 0
    assert [row["status"] for row in json.loads(done.output)] == ["warn", "ok"]


def test_probe_timeout_and_missing_unshare_have_different_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_probe_cgroup", lambda: contextlib.nullcontext(tmp_path))
    monkeypatch.setattr(check, "PROBE_TIMEOUT_S", 0.0)
    (slow,) = check._probe()
    assert (slow.status, slow.hint) == (Status.FAIL, "retry on an idle machine")
    monkeypatch.setenv("PATH", str(tmp_path))
    (without,) = check._probe()
    assert (without.status, without.hint) == (Status.FAIL, "apt-get install util-linux")
