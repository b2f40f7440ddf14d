# SPDX-License-Identifier: Apache-2.0
"""Metrics of real traffic, scraped as Prometheus does; health, drain, and config dump."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from subprocess import PIPE, Popen

import pytest

from tests.lab.helpers.harness import APPS, addresses, client, named, proxy_log, python_pod
from tests.lab.helpers.scrape import Page, readiness, scrape
from tests.lab.test_policy import Policies, authorization, port
from tests.lab.test_ztctl import ztctl
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, admin_get, demo_manifests
from ztunnel.proxy.agent_link.counter_reporter import INTERVAL_S
from ztunnel.telemetry.labels import LABELS
from ztunnel.telemetry.node_counters import METRICS

SERVER = "spiffe://cluster.local/ns/default/sa/server"
DEFAULT = "spiffe://cluster.local/ns/default/sa/default"
OPENED, CLOSED = "istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"
COLLECTOR = "http://127.0.0.1:4318/v1/traces"
RECEIVED, SENT = "istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"


def grown(after: Page, before: Page, name: str, **labels: str) -> float:
    return after.total(name, **labels) - before.total(name, **labels)


@pytest.mark.parametrize("family", [4, 6])
def test_source_and_destination_count_a_connection_and_its_bytes(lab: Lab, family: int) -> None:
    before = {node: scrape(lab, node) for node in ("node1", "node2")}
    target = addresses(lab, "server")[family]
    client(lab, "client", "upload", target, 7002, 3_000_000)
    for node, reporter in (("node1", "source"), ("node2", "destination")):
        ends = {
            "reporter": reporter,
            "source_workload": "client",
            "source_principal": DEFAULT,
            "destination_workload": "server",
            "destination_principal": SERVER,
            "destination_app": "server",
            "connection_security_policy": "mutual_tls",
            "response_flags": "-",
        }

        def closed(node: str = node, ends: dict[str, str] = ends) -> bool:
            return grown(scrape(lab, node), before[node], CLOSED, **ends) == 1

        wait_until(closed, "the connection to be counted")
        after = scrape(lab, node)
        assert grown(after, before[node], OPENED, **ends) == 1
        assert grown(after, before[node], RECEIVED, **ends) == 3_000_000
        answer = grown(after, before[node], SENT, **ends)
        assert answer == len("3000000 ") + 64 + 1  # the digest of the server and a line feed
        for sample in after.matching(OPENED, **ends):
            assert set(sample.labels) == set(LABELS)


def test_source_and_destination_report_the_service(lab: Lab) -> None:
    assert lab.exec("client", "curl", "-sf", "http://my-app").returncode == 0
    service = {
        "destination_service": "my-app.default.svc.cluster.local",
        "destination_service_name": "my-app",
        "destination_service_namespace": "default",
    }
    for node, reporter in (("node1", "source"), ("node2", "destination")):
        wait_until(
            lambda node=node, reporter=reporter: scrape(lab, node).total(  # type: ignore[misc]
                CLOSED, reporter=reporter, **service
            ),
            f"the service at {node}",
        )


def test_bytes_of_an_open_connection_are_reported(lab: Lab) -> None:
    before = scrape(lab, "node2")
    with open_connection(lab, "client", addresses(lab, "server")[4]) as connection:
        send_line(connection, "0123456789")

        def seen() -> bool:
            now = scrape(lab, "node2")
            return grown(now, before, RECEIVED, destination_workload="server") == 11

        wait_until(seen, "the bytes of a live connection")
        now = scrape(lab, "node2")
        assert grown(now, before, OPENED, destination_workload="server") == 1
        assert grown(now, before, CLOSED, destination_workload="server") == 0


def test_refused_connection_counts_as_failed(lab: Lab) -> None:
    before = scrape(lab, "node1")
    said = client(lab, "client", "poke", addresses(lab, "server")[4], 7999)
    assert said == {"end": "ECONNRESET"}

    def failed() -> bool:
        now = scrape(lab, "node1")
        flags = {"response_flags": "CONNECT", "destination_workload": "server"}
        return grown(now, before, "istio_tcp_connections_failed_total", **flags) == 1

    wait_until(failed, "the failure")


def test_denial_is_flagged_at_source_and_destination(lab: Lab) -> None:
    before = {node: scrape(lab, node) for node in ("node1", "node2")}
    policies, ends = Policies(lab), {"source_workload": "client", "destination_workload": "server"}
    try:
        policies.apply(authorization("DENY", port(7000)))
        said = client(lab, "client", "poke", addresses(lab, "server")[4], 7000)
        assert said["end"] == "ECONNRESET"
    finally:
        policies.clear()
    failed = "istio_tcp_connections_failed_total"
    for node in ("node1", "node2"):

        def flagged(node: str = node) -> bool:
            now = scrape(lab, node)
            return grown(now, before[node], failed, response_flags="DENY", **ends) == 1

        wait_until(flagged, f"the denial at {node}")


def test_plaintext_and_mtls_have_different_labels(lab: Lab) -> None:
    before = scrape(lab, "node2")
    target = addresses(lab, "server")[4]
    assert client(lab, "client", "echo", target, 7000, "in", namespace="plain") == {"said": "in"}
    ends = {
        "reporter": "destination",
        "source_workload_namespace": "plain",
        "source_principal": "unknown",
        "connection_security_policy": "unknown",
    }
    wait_until(lambda: grown(scrape(lab, "node2"), before, CLOSED, **ends) == 1, "the connection")
    after = scrape(lab, "node2")
    assert (grown(after, before, RECEIVED, **ends), grown(after, before, SENT, **ends)) == (2, 2)


@pytest.mark.parametrize("family", [4, 6])
def test_bypassed_connections_count_for_source_and_destination(lab: Lab, family: int) -> None:
    target = addresses(lab, "near")[family]
    rtt = "ztunnel_same_node_rtt_seconds_count"
    pair = {"source_workload": "client", "destination_workload": "near"}

    def direct() -> bool:
        before = scrape(lab, "node1").total(rtt, **pair)
        client(lab, "client", "upload", target, 7002, 50_000)
        return scrape(lab, "node1").total(rtt, **pair) > before

    def settled() -> Page | None:
        """Scrape once the proxied connections are closed at both nodes."""
        page = scrape(lab, "node1")
        return page if page.total(OPENED, **pair) == page.total(CLOSED, **pair) else None

    wait_until(direct, "the pair to go direct")
    before = wait_until(settled, "the ends of earlier connections")
    assert before is not None
    client(lab, "client", "upload", target, 7002, 70_000)
    wait_until(lambda: grown(scrape(lab, "node1"), before, rtt, **pair) == 1, "the kernel's word")
    after = scrape(lab, "node1")
    for reporter in ("source", "destination"):
        ends = {**pair, "reporter": reporter, "destination_principal": DEFAULT}
        assert grown(after, before, OPENED, **ends) == grown(after, before, CLOSED, **ends) == 1
        assert grown(after, before, RECEIVED, **ends) == 70_000
    assert grown(after, before, "ztunnel_same_node_rtt_seconds_sum", **pair) > 0
    assert list(after.matching("ztunnel_same_node_retransmits_total", **pair))


def test_metrics_cover_agent_and_kernel(lab: Lab) -> None:
    client(lab, "client", "echo", addresses(lab, "server")[4], 7000, "hello")
    page = scrape(lab, "node1")
    assert page.total("ztunnel_ready") == page.total("ztunnel_config_source_synced") == 1
    assert page.total("ztunnel_workers") == 1
    assert page.total("ztunnel_pods", state="captured") >= 2
    assert page.total("ztunnel_certificate_expiry_timestamp_seconds", identity=DEFAULT) > 1e9
    assert page.total("ztunnel_bpf_map_max_entries", map="zt_flows") == 262144
    assert page.total("ztunnel_bpf_map_entries", map="zt_pods") >= 2
    assert {sample.name for sample in page.samples} >= {f"{name}_total" for name in METRICS} - {
        "istio_tcp_connections_failed_total"
    }


def test_only_the_metrics_and_health_paths_are_served(lab: Lab) -> None:
    for path, status in (("/metrics", "200"), ("/stats/prometheus", "200"), ("/v1/pods", "404")):
        done = lab.node_exec(
            *("node1", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"),
            f"http://[::1]:15020{path}",
        )
        assert done.stdout == status


def test_config_dump_contains_no_private_key(lab: Lab) -> None:
    status, dump = admin_get(lab.names, "node1", "/config_dump")
    assert status == 200
    assert {"status", "workloads", "services", "pods", "certificates"} <= set(dump)
    assert "PRIVATE" not in json.dumps(dump)


def test_log_levels_change_at_run_time(lab: Lab) -> None:
    target, node = addresses(lab, "server")[4], ("--node", "node1")

    def lines() -> int:
        return proxy_log(lab, "node1").count(f"dst.hbone_addr={target}:7000")

    ends = {"source_workload": "client", "destination_workload": "server"}

    def lines_logged() -> int:
        before, closed = lines(), scrape(lab, "node1").total(CLOSED, **ends)
        client(lab, "client", "echo", target, 7000, "x")
        wait_until(lambda: scrape(lab, "node1").total(CLOSED, **ends) > closed, "its end")
        scrape(lab, "node1")  # the worker flushes its log one loop turn later
        return lines() - before

    assert lines_logged() == 1
    try:
        done = ztctl(lab, *node, "log", "level", "access/default=warning", "process=debug")
        assert done.returncode == 0, done.stderr
        assert "access/default" in done.stdout
        assert lines_logged() == 0
        done = ztctl(lab, *node, "log", "level", "access/default=info", "--sample", "0")
        assert done.returncode == 0, done.stderr
        assert lines_logged() == 0
        ztctl(lab, *node, "log", "level", "access/default=warning", "--sample", "1")
        (dump,) = json.loads(ztctl(lab, *node, "config", "dump").stdout).values()
        assert dump["log"]["namespaces"] == {"default": {"level": "warning", "sample": 1.0}}
    finally:
        ztctl(lab, *node, "log", "level", "access/default=default", "process=default")
    assert lines_logged() == 1


@contextlib.contextmanager
def open_connection(lab: Lab, pod: str, target: str) -> Iterator[Popen[bytes]]:
    """An open connection of a pod; each line is echoed."""
    argv = (sys.executable, str(APPS / "client.py"), "hold", target, "7000")
    process = lab.popen(pod, *argv)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == b"connected\n"
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):  # it ended by itself
            process.stdin.close()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()


def send_line(connection: Popen[bytes], text: str) -> None:
    assert connection.stdin is not None
    assert connection.stdout is not None
    connection.stdin.write(text.encode() + b"\n")
    connection.stdin.flush()
    assert connection.stdout.readline() == text.encode() + b"\n"


# A lab with several workers, for tests that stop processes


@pytest.fixture(scope="module")
def two(_root: None) -> Iterator[Lab]:
    """Two workers per node, short series TTL, kernel timing enabled."""
    made = Lab(
        f"t{os.getpid() % 100000}",
        agent_options=("--bpf-stats", "--metrics-series-ttl", "1"),
        proxy_options=("--workers", "2", "--drain-timeout", "4", "--otlp-endpoint", COLLECTOR),
    )
    objects = [
        named("ServiceAccount", "server", "default"),
        python_pod("server", "node2", script="server.py", account="server"),
    ]
    try:
        made.up([demo_manifests()])
        made.apply(*objects)
        yield made
    finally:
        made.down()


def _workers(lab: Lab, node: str) -> list[int]:
    _, status = admin_get(lab.names, node, "/v1/status")
    return [worker["pid"] for worker in (status or {}).get("workers", [])]


def test_counters_sum_all_workers_and_close_connections_of_a_killed_one(two: Lab) -> None:
    target = addresses(two, "server")[4]
    wait_until(lambda: len(_workers(two, "node1")) == 2, "two workers")
    before = scrape(two, "node1")
    ends = {"reporter": "source", "destination_workload": "server"}
    for _ in range(6):
        client(two, "client", "echo", target, 7000, "hello")
    wait_until(lambda: grown(scrape(two, "node1"), before, CLOSED, **ends) == 6, "all six")
    with (
        open_connection(two, "client", target) as one,
        open_connection(two, "client", target) as other,
    ):
        for each in (one, other):
            send_line(each, "12345")
        wait_until(
            lambda: grown(scrape(two, "node1"), before, OPENED, **ends) == 8, "the live ones"
        )
        live = scrape(two, "node1")
        assert grown(live, before, CLOSED, **ends) == 6
        assert grown(live, before, RECEIVED, **ends) == 6 * 5 + 2 * 6
        for pid in _workers(two, "node1"):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: grown(scrape(two, "node1"), before, CLOSED, **ends) == 8, "their end")
    after = scrape(two, "node1")
    assert grown(after, before, OPENED, **ends) == 8
    for sample in live.samples:
        if sample.name.startswith("istio_"):
            assert after.total(sample.name, **sample.labels) >= sample.value
    wait_until(lambda: len(_workers(two, "node1")) == 2, "their successors")
    wait_until(lambda: readiness(two, "node1")[0] == 200, "readiness")
    client(two, "client", "echo", target, 7000, "again")
    wait_until(
        lambda: grown(scrape(two, "node1"), before, OPENED, **ends) == 9, "no more and no less"
    )


def test_killed_workers_lose_at_most_one_report_interval(two: Lab) -> None:
    """Nothing scrapes, which would make workers report: they report once per interval."""
    target = addresses(two, "server")[4]
    ends = {"reporter": "source", "destination_workload": "server"}

    def lines() -> int:
        return proxy_log(two, "node1").count(f"dst.hbone_addr={target}:7000")

    def transfer_and_kill(delay: float) -> tuple[Page, Page]:
        wait_until(lambda: len(_workers(two, "node1")) == 2, "two workers")
        wait_until(lambda: readiness(two, "node1")[0] == 200, "readiness")
        workers, before, written = _workers(two, "node1"), scrape(two, "node1"), lines()
        for _ in range(5):
            client(two, "client", "echo", target, 7000, "hello")
        wait_until(lambda: lines() == written + 5, "the workers to close the connections")
        time.sleep(delay)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not set(workers) & set(_workers(two, "node1")), "the agent to notice")
        after = scrape(two, "node1")
        for sample in before.samples:  # counters never decrease, whatever was lost
            if sample.name.startswith("istio_"):
                assert after.total(sample.name, **sample.labels) >= sample.value
        return before, after

    before, after = transfer_and_kill(delay=2 * INTERVAL_S)
    assert grown(after, before, OPENED, **ends) == grown(after, before, CLOSED, **ends) == 5
    assert grown(after, before, RECEIVED, **ends) == grown(after, before, SENT, **ends) == 25
    before, after = transfer_and_kill(delay=0)
    assert 0 <= grown(after, before, OPENED, **ends) <= 5
    assert grown(after, before, CLOSED, **ends) == grown(after, before, OPENED, **ends)
    assert 0 <= grown(after, before, RECEIVED, **ends) <= 25
    wait_until(lambda: readiness(two, "node1")[0] == 200, "readiness")
    client(two, "client", "echo", target, 7000, "again")
    wait_until(
        lambda: grown(scrape(two, "node1"), after, CLOSED, **ends) == 1,
        "the successors to count on",
    )


def test_spans_of_both_ends_reach_a_collector(two: Lab) -> None:
    """The exporter sends spans in batches, some seconds after they end."""
    found: dict[str, dict[str, str]] = {}
    with contextlib.ExitStack() as stack:
        for node in ("node1", "node2"):
            argv = [sys.executable, str(APPS / "collector.py"), "4318"]
            process = stack.enter_context(
                Popen(two.node_argv(node, argv), stdout=PIPE)  # in the network of the node
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            assert process.stdout.readline() == b"collecting\n"
            client(two, "client", "echo", addresses(two, "server")[4], 7000, "traced")
            spans = json.loads(process.stdout.readline())
            found[node] = next(each for each in spans if each.get("dst.workload") == "server")
    assert found["node1"]["direction"] == "outbound"
    assert found["node2"]["direction"] == "inbound"
    assert found["node1"]["src.identity"] == found["node2"]["src.identity"] == DEFAULT


def test_drain_reports_not_ready_at_once_and_finishes_transfers(two: Lab) -> None:
    target = addresses(two, "server")[4]
    proxy = two.component("node1", "proxy")
    before = scrape(two, "node1")
    ends = {"reporter": "source", "destination_workload": "server"}
    with open_connection(two, "client", target) as connection:
        send_line(connection, "before")
        supervisor = proxy.pid
        assert supervisor is not None
        os.kill(supervisor, signal.SIGTERM)
        wait_until(lambda: readiness(two, "node1")[0] == 503, "readiness to go", timeout_s=2)
        assert "a proxy worker" in readiness(two, "node1")[1]["waiting_for"]
        assert client(two, "client", "poke", target, 7000) == {"end": "ECONNREFUSED"}
        for line in range(20):
            send_line(connection, f"while it drains {line}")
    wait_until(lambda: proxy.pid is None, "the proxy to end")
    assert two.up() == []

    def counted() -> bool:
        after = scrape(two, "node1")
        return grown(after, before, CLOSED, **ends) == grown(after, before, OPENED, **ends) == 1

    wait_until(counted, "the drained connection in the metrics")
    wait_until(lambda: readiness(two, "node1")[0] == 200, "readiness")


def test_drain_resets_connections_at_the_deadline(two: Lab) -> None:
    target = addresses(two, "server")[4]
    proxy = two.component("node1", "proxy")
    with open_connection(two, "client", target) as connection:
        send_line(connection, "before")
        supervisor = proxy.pid
        assert supervisor is not None
        os.kill(supervisor, signal.SIGTERM)
        wait_until(lambda: proxy.pid is None, "the proxy to end at its deadline", timeout_s=8)
        assert two.up() == []
        assert connection.stdin is not None
        connection.stdin.write(b"after\n")
        connection.stdin.flush()
        assert connection.wait(10) == 1
        assert connection.stderr is not None
        assert b"ConnectionResetError" in connection.stderr.read()


def test_bpf_programs_are_timed_when_enabled(two: Lab) -> None:
    client(two, "client", "echo", addresses(two, "server")[4], 7000, "x")
    page = scrape(two, "node1")
    assert page.total("ztunnel_bpf_program_runs_total", program="zt_connect4") > 0
    assert page.total("ztunnel_bpf_program_run_seconds_total", program="zt_sockops") > 0


def test_series_of_a_deleted_workload_expire(two: Lab) -> None:
    two.apply(python_pod("brief", "node2", script="server.py"))
    client(two, "client", "echo", addresses(two, "brief")[4], 7000, "x")
    wait_until(
        lambda: scrape(two, "node1").total(CLOSED, destination_workload="brief") == 1, "counts"
    )
    two.delete("pod", "brief")
    wait_until(
        lambda: not list(scrape(two, "node1").matching(OPENED, destination_workload="brief")),
        "its series to be forgotten",
        timeout_s=30,
    )
    assert scrape(two, "node1").total("ztunnel_metrics_series_expired_total") > 0


def test_stopped_agent_is_not_ready(two: Lab) -> None:
    agent = two.component("node2", "agent")
    assert readiness(two, "node2")[0] == 200
    agent.stop()
    assert readiness(two, "node2") == (0, None)
    assert two.up() == []
    assert readiness(two, "node2")[0] == 200
