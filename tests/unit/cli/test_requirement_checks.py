# SPDX-License-Identifier: Apache-2.0
"""Single checks name what they found and the mend; the command fails when one does."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.unit.cli.conftest import Ztctl
from ztctl import requirement_checks
from ztctl.commands import check
from ztctl.requirement_checks import Result, Status
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
    assert (result.status, result.found) == (status, release)
    assert bool(result.mend) == (status is Status.WARN)


def test_the_openssl_that_is_named_is_the_proxys() -> None:
    assert requirement_checks.openssl().found in SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()


def test_another_project_called_bcc_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    result = requirement_checks.bcc()
    assert result.status is Status.FAIL
    assert "another project" in result.found
    assert "python3-bpfcc" in result.mend


def test_a_machine_that_lacks_everything_gets_a_mend_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_root() -> Path:
        raise requirements.PreflightError("no cgroup v2 mount found; mount one")

    monkeypatch.setattr(requirements, "cgroup2_root", no_root)
    monkeypatch.setattr(requirements, "missing_capabilities", lambda: ["CAP_BPF"])
    monkeypatch.setattr(
        requirements, "bpffs", lambda: requirements.BpfFs(mounted=False, point=Path("/sys/fs/bpf"))
    )
    monkeypatch.setattr(requirements, "btf", lambda: False)
    monkeypatch.setattr(requirements, "kernel_headers", lambda: None)
    failed = {
        result.check: result
        for result in requirement_checks.facts()
        if result.status is Status.FAIL
    }
    expected = {"capabilities", "cgroup v2 root", "bpffs", "BTF", "kernel headers"}
    assert expected <= set(failed)
    assert all(result.mend for result in failed.values())
    assert failed["cgroup v2 root"].mend == "mount one"


def test_a_failed_check_fails_the_command_and_skips_the_probe(
    ztctl: Ztctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [Result("bpffs", Status.FAIL, "none", "mount it")]
    monkeypatch.setattr(requirement_checks, "facts", lambda: iter(results))
    monkeypatch.setattr(check, "_probe", lambda: pytest.fail("probed"))
    done = ztctl("check")
    assert done.exit_code == 1
    assert "bpffs: mount it" in done.output
    assert "failed: bpffs" in done.output
    assert "not tried" in done.output


def test_warnings_do_not_fail_the_command(ztctl: Ztctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        requirement_checks, "facts", lambda: iter([Result("IPv6", Status.WARN, "no", "x")])
    )
    monkeypatch.setattr(check, "_probe", lambda: [Result("programs", Status.OK, "all")])
    done = ztctl("check", "-o", "json")
    assert done.exit_code == 0
    assert [row["status"] for row in json.loads(done.output)] == ["warn", "ok"]


def test_a_machine_that_is_too_slow_is_told_from_one_without_unshare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_cgroup", lambda: contextlib.nullcontext(tmp_path))
    monkeypatch.setattr(check, "PROBE_TIMEOUT", 0.0)
    (slow,) = check._probe()
    assert (slow.status, slow.mend) == (Status.FAIL, "try again when this machine is idle")
    monkeypatch.setenv("PATH", str(tmp_path))
    (without,) = check._probe()
    assert (without.status, without.mend) == (Status.FAIL, "apt-get install util-linux")
