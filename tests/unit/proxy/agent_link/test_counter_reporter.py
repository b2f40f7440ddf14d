# SPDX-License-Identifier: Apache-2.0
"""The counters that real workers report, and which agent receives them."""

from __future__ import annotations

import socket
from collections import Counter

import msgspec
import pytest

from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.h2client import server_context
from tests.unit.proxy.harness import DEADLINE, Node, workload
from ztunnel.ipc.messages import AccessRule, CounterReport, LogConfig, LogLevel, UdpDropCounts
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.agent_link.counter_reporter import (
    MAX_PENDING,
    MAX_SERIES_PER_REPORT,
    CounterReporter,
)
from ztunnel.telemetry.dns_counters import Outcome
from ztunnel.telemetry.labels import LABELS, Reporter
from ztunnel.telemetry.udp_drop_counters import UdpDropReason
from ztunnel.telemetry.worker_counters import ConnectionPeers, WorkerCounters


def sums(node: Node) -> Counter[str]:
    """All that a node's worker counted up to now."""
    node.query("stats")  # it reports before it replies
    total = Counter[str]()
    for row in node.agent.series():
        for field in ("opened", "closed", "failed", "sent", "received"):
            total[field] += getattr(row, field)
    return total


def flags(node: Node) -> Counter[str]:
    node.query("stats")
    total = Counter[str]()
    for row in node.agent.series():
        total[row.labels[-1]] += row.failed
    return +total


def labels(node: Node) -> list[dict[str, str]]:
    return [dict(zip(LABELS, row.labels, strict=True)) for row in node.agent.series()]


def test_connection_and_bytes_count_at_both_proxies(pair: Pair) -> None:
    client, server = pair.a.dial(), pair.app.accept()
    client.sendall(b"x" * 1000)
    assert len(server.recv(1000)) == 1000
    server.sendall(b"y" * 300)
    assert len(client.recv(300)) == 300
    live = sums(pair.a)
    assert (live["opened"], live["closed"]) == (1, 0)
    assert (live["sent"], live["received"]) == (1000, 300)  # while it lives
    client.close()
    server.close()
    wait_until(lambda: not pair.a.context.tracker.live() and not pair.b.context.tracker.live())
    for node, reporter in ((pair.a, "source"), (pair.b, "destination")):
        found = sums(node)
        assert (found["opened"], found["closed"], found["failed"]) == (1, 1, 0)
        assert (found["sent"], found["received"]) == (1000, 300)
        assert {row["reporter"] for row in labels(node)} == {reporter}
        (policy,) = {row["connection_security_policy"] for row in labels(node)}
        assert policy == "mutual_tls"
        (ends,) = {(row["source_principal"], row["destination_principal"]) for row in labels(node)}
        assert ends == (pair.a.me.identity, pair.b.me.identity)


def test_closed_destination_port_counts_as_connect_failure(pair: Pair) -> None:
    pair.app.close()
    client = pair.a.dial()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: sums(pair.b)["failed"])
    assert flags(pair.a) == {"CONNECT": 1}
    assert flags(pair.b) == {"CONNECT": 1}


def test_reserved_port_counts_as_connect_failure_without_opening(pair: Pair) -> None:
    pair.a.target = SocketAddress(pair.app.address.ip, 15008)
    with pytest.raises(ConnectionResetError):
        pair.a.dial().recv(1)
    wait_until(lambda: sums(pair.a)["failed"])
    assert flags(pair.a) == {"CONNECT": 1}
    assert sums(pair.a)["opened"] == sums(pair.a)["closed"] == 0


def test_missing_certificate_counts_as_identity_error(fresh_pair: Pair) -> None:
    a = fresh_pair.a
    a.start(None)
    wait_until(lambda: a.me.pod_uid in a.worker.pods and a.context.mesh is not None)
    with pytest.raises(ConnectionResetError):
        a.dial().recv(1)
    wait_until(lambda: sums(a)["failed"])
    assert flags(a) == {"IDENTITY_ERROR": 1}


def test_unexpected_peer_identity_counts_as_identity_error(fresh_pair: Pair) -> None:
    a, b = fresh_pair.a, fresh_pair.b
    a.start(fresh_pair.authority.issue(a.me.identity))
    wrong = fresh_pair.authority.issue("spiffe://cluster.local/ns/test/sa/somebody")
    b.start(msgspec.structs.replace(wrong, identity=b.me.identity))
    with pytest.raises(ConnectionResetError):
        a.dial().recv(1)
    wait_until(lambda: sums(a)["failed"])
    assert flags(a) == {"IDENTITY_ERROR": 1}


def test_peer_without_http2_counts_as_handshake_failure(fresh_pair: Pair) -> None:
    a, b = fresh_pair.a, fresh_pair.b
    a.start(fresh_pair.authority.issue(a.me.identity))
    peer = server_context(fresh_pair.authority.issue(b.me.identity))
    with socket.create_server((b.ip, 15008)) as listener:
        listener.settimeout(DEADLINE)
        client = a.dial()
        sock, _ = listener.accept()
        sock.settimeout(DEADLINE)
        with peer.wrap_socket(sock, server_side=True) as session:
            session.sendall(b"SSH-2.0-not what you think\r\n")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    wait_until(lambda: sums(a)["failed"])
    assert flags(a) == {"H2_HANDSHAKE_FAILURE": 1}


def test_plaintext_on_hbone_port_counts_as_tls_failure(pair: Pair) -> None:
    with socket.create_connection((pair.b.ip, 15008), DEADLINE) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: sums(pair.b)["failed"])
    assert flags(pair.b) == {"TLS_FAILURE": 1}
    (row,) = labels(pair.b)
    assert (row["source_workload"], row["destination_workload"]) == ("unknown", "b")


def test_unacknowledged_reports_are_sent_to_next_agent(pair: Pair) -> None:
    pair.a.agent.acknowledges = False
    client, server = pair.a.dial(), pair.app.accept()
    wait_until(lambda: sums(pair.a)["opened"] == 1)
    pair.a.agent.stop()
    client.close()
    server.close()
    wait_until(lambda: not pair.a.context.tracker.live())
    before = len(pair.a.agent.reports)
    pair.a.agent.acknowledges = True
    pair.a.agent.start()
    wait_until(lambda: len(pair.a.agent.reports) > before)
    wait_until(lambda: sums(pair.a)["closed"] == 1)
    assert sums(pair.a)["opened"] == 1  # both agents received it, with the same seq
    seqs = [each.seq for each in pair.a.agent.reports]
    assert len(seqs) > len(set(seqs))


def test_drained_worker_sends_last_report_before_exit(pair: Pair) -> None:
    client, server = pair.a.dial(), pair.app.accept()
    pair.a.in_loop(lambda: pair.a.worker.drain(5.0))
    wait_until(lambda: pair.a.agent.draining, "the word of it")
    client.sendall(b"last words")
    client.close()
    assert server.recv(100) == b"last words"
    server.close()
    pair.a._thread.join(5.0)
    wait_until(lambda: sum(row.closed for row in pair.a.agent.series()) == 1, "the last counts")
    rows = pair.a.agent.series()
    assert sum(row.opened for row in rows) == 1
    assert sum(row.sent for row in rows) == len(b"last words")


def test_log_config_selects_access_log_lines(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    def lines(settings: LogConfig) -> int:
        pair.a.agent.send(settings)
        wait_until(lambda: pair.a.context.tracker.access.settings == settings)
        capfd.readouterr()
        client, server = pair.a.dial(), pair.app.accept()
        client.close()
        server.close()
        wait_until(lambda: not pair.a.context.tracker.live())
        pair.a.query("stats")  # a turn later what it wrote is written
        return capfd.readouterr().err.count("direction=outbound")

    off = AccessRule(LogLevel.OFF)
    assert lines(LogConfig()) == 1
    assert lines(LogConfig(access=off)) == 0
    assert lines(LogConfig(access=AccessRule(sample=0))) == 0
    assert lines(LogConfig(access=off, namespaces={"test": AccessRule()})) == 1
    assert lines(LogConfig(namespaces={"test": off})) == 0


# The reporter, without a worker


def count(counters: WorkerCounters, series: int) -> None:
    for number in range(series):
        peers = ConnectionPeers(workload(f"p{number}", "10.0.0.1"))
        counters.traffic.count_opened(counters.traffic.series(Reporter.SOURCE, peers))


def test_many_series_are_split_into_reports_that_fit() -> None:
    counters, sent = WorkerCounters(), list[CounterReport]()
    reporter = CounterReporter(sent.append, counters)
    count(counters, MAX_SERIES_PER_REPORT * 2 + 1)
    counters.dns.count_query(Outcome.MESH)
    counters.udp_drops.count(UdpDropReason.FLOW_LIMIT)
    reporter.report()
    sizes = [len(each.series) for each in sent]
    assert sizes == [MAX_SERIES_PER_REPORT, MAX_SERIES_PER_REPORT, 1]
    assert [each.dns is not None for each in sent] == [True, False, False]
    assert [each.udp_drops is not None for each in sent] == [True, False, False]
    assert [each.seq for each in reporter.pending] == [1, 2, 3]
    reporter.acknowledged(2)
    assert [each.seq for each in reporter.pending] == [3]


def test_nothing_is_reported_when_nothing_was_counted() -> None:
    counters, sent = WorkerCounters(), list[CounterReport]()
    reporter = CounterReporter(sent.append, counters)
    reporter.report()
    assert sent == []
    counters.udp_drops.count(UdpDropReason.BUFFER_FULL)  # drops alone are worth a report
    reporter.report()
    reporter.report()
    (report,) = sent
    assert report.series == ()
    assert report.udp_drops == UdpDropCounts((1, 0))


def test_reports_without_acknowledgment_are_bounded_and_nothing_is_lost() -> None:
    counters, sent = WorkerCounters(), list[CounterReport]()
    reporter = CounterReporter(sent.append, counters)
    for _ in range(MAX_PENDING * 2):
        count(counters, 1)
        reporter.report()
    assert len(sent) == MAX_PENDING
    reporter.acknowledged(sent[-1].seq)
    reporter.report()
    assert len(sent) == MAX_PENDING + 1
    assert sum(one.opened for each in sent for one in each.series) == MAX_PENDING * 2
