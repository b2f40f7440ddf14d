# SPDX-License-Identifier: Apache-2.0
"""`ztctl` with a lab, also while agent and proxy are down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.helpers.harness import addresses, client
from tests.support.waiting import wait_until
from ztunnel.lab import Lab

ZTCTL = Path(sys.executable).with_name("ztctl")


def ztctl(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `ztctl WORDS...` for the lab."""
    argv = [str(ZTCTL), "--lab", lab.names.name, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def rows(lab: Lab, *words: str) -> list[dict[str, Any]]:
    """The output as data."""
    done = ztctl(lab, *words, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_workloads_services_and_certificates_are_listed(lab: Lab) -> None:
    workloads = {(row["namespace"], row["name"]): row for row in rows(lab, "workload", "list")}
    assert workloads["default", "client"]["protocol"] == "HBONE"
    assert workloads["plain", "client"]["protocol"] == "NONE"
    services = {(row["namespace"], row["name"]) for row in rows(lab, "service", "list")}
    assert ("default", "my-app") in services
    certificates = {(row["node"], row["identity"]) for row in rows(lab, "certificate", "list")}
    assert ("node2", "spiffe://cluster.local/ns/default/sa/server") in certificates
    assert not any("key" in field for row in rows(lab, "certificate", "list") for field in row)


def test_status_covers_all_nodes(lab: Lab) -> None:
    assert [row["node"] for row in rows(lab, "status")] == ["node1", "node2"]


def test_open_connection_is_listed_on_both_nodes(lab: Lab) -> None:
    target = addresses(lab, "server")[4]
    script = Path(__file__).with_name("apps") / "client.py"
    process = lab.popen("client", sys.executable, str(script), "hold", target, "7000")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"connected\n"
        process.stdin.write(b"through\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"through\n"
        sides = {
            (row["node"], row["direction"])
            for row in rows(lab, "connection", "list")
            if f"{target}:7000" in (row["destination"]["address"], row["hbone_addr"])
        }
        assert sides == {("node1", "outbound"), ("node2", "inbound")}
        done = ztctl(lab, "--node", "node1", "redirect", "show", "default/client", "-o", "json")
        flows = json.loads(done.stdout)["connections"]
        assert f"{target}:7000" in {row["original_dst"] for row in flows}
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_redirect_works_while_agent_and_proxy_are_down(lab: Lab) -> None:
    before = {row["pod"]: row for row in rows(lab, "--node", "node1", "redirect", "list")}
    assert "default/client" in before
    for part in ("agent", "proxy"):
        lab.kill("node1", part)
    try:
        assert client(lab, "client", "poke", addresses(lab, "server")[4], 7000)
        after = {row["pod"]: row for row in rows(lab, "--node", "node1", "redirect", "list")}
        assert set(after) == set(before)
        increase = after["default/client"]["redirected"] - before["default/client"]["redirected"]
        assert increase == 1
        done = ztctl(lab, "--node", "node1", "workload", "list")
        assert done.returncode == 3
        assert "node1" in done.stderr
    finally:
        lab.up()  # starts both: each is ready only with the other
    target = addresses(lab, "server")[4]
    wait_until(
        lambda: client(lab, "client", "poke", target, 7000) == {"end": "data"},
        "the node to serve again",
    )


def test_watch_reports_connections(lab: Lab) -> None:
    """The traffic continues until the watch has reported some."""
    argv = [str(ZTCTL), "--lab", lab.names.name, "--node", "node1", "redirect", "watch"]
    argv += ["--interval", "0.02", "--for", "50", "-o", "json"]
    script, target = Path(__file__).with_name("apps") / "client.py", addresses(lab, "server")[4]
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as watching,
        lab.popen("client", sys.executable, str(script), "repeat", target, "7000", "60") as calls,
    ):
        try:
            assert watching.stdout is not None
            event = json.loads(watching.stdout.readline())
        finally:
            calls.kill()
            watching.terminate()
    assert event["event"] in ("opened", "counted", "closed")
    assert (event["node"], event["pod"]) == ("node1", "default/client")


def test_uninstall_fails_while_the_agent_runs(lab: Lab) -> None:
    done = ztctl(lab, "--node", "node1", "uninstall")
    assert done.returncode == 1
    assert f"ztctl lab down --name {lab.names.name}" in done.stderr
    assert (lab.names.pin_dir("node1") / "links").is_dir()
