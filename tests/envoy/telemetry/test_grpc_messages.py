# SPDX-License-Identifier: Apache-2.0
"""Istio's counters of gRPC messages, with a real Envoy, client and server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.envoy.telemetry.running import IDENTITY, PEER, telemetry
from tests.support.waiting import wait_until
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import dial, request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.world import World
from ztunnel.l7.names import PeerState
from ztunnel.l7.telemetry.page import prometheus_page

METRICS = ("istio_request_messages_total", "istio_response_messages_total")
FORGED = (("ztunnel-grpc-request-messages", "1000"), ("ztunnel-identity", "spiffe://forged"))


class Doubler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each message with two, and forges the trailer that carries the count."""

    def service(self, handler_call_details: Any) -> Any:
        def answer(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
            context.set_trailing_metadata(FORGED)
            if handler_call_details.method == "/s/Fail":
                context.abort(grpc.StatusCode.NOT_FOUND, "none")
            for message in messages:
                yield message
                yield message

        return grpc.stream_stream_rpc_method_handler(answer)


class Waypoint:
    """A waypoint in front of the service default/web. `channel` reaches it."""

    def __init__(self, envoy: RunningEnvoy, vip: tuple[str, int], channel: grpc.Channel) -> None:
        self.envoy, self.vip, self.channel = envoy, vip, channel

    def call(self, count: int, method: str = "/s/Double") -> Any:
        """A finished call with `count` messages: responses can be read, trailers are known."""
        call = self.channel.stream_stream(method)(iter([b"message"] * count))
        assert len(list(call)) == 2 * count
        return call

    def counts(self) -> tuple[float, ...]:
        """The sums of both metrics."""
        return tuple(sum(value for _, value in self.series(name)) for name in METRICS)

    def series(self, metric: str) -> list[tuple[dict[str, str], float]]:
        page = prometheus_page(self.envoy.admin_get("/stats/prometheus").encode()).decode()
        return [
            (dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == metric
        ]


@contextmanager
def running(
    directory: Path, *objects: dict[str, Any], peer: Mapping[PeerState, str] = PEER
) -> Iterator[Waypoint]:
    world = World()
    for obj in objects:
        world.add(obj)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Doubler(),))
    vip = world.service("web", {80: "grpc"}, [server.add_insecure_port("127.0.0.1:0")])
    server.start()
    with running_envoy(world.compile(), directory) as envoy, relay(envoy.port, vip, peer) as port:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        try:
            yield Waypoint(envoy, vip, channel)
        finally:
            channel.close()
            server.stop(0)


@contextmanager
def relay(port: int, vip: tuple[str, int], peer: Mapping[PeerState, str]) -> Iterator[int]:
    """A port whose connections get the PROXY header in front."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                envoy = dial(port, vip, peer)
                envoy.settimeout(None)
                for pair in ((client, envoy), (envoy, client)):
                    threading.Thread(target=_copy, args=pair, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()


def test_messages_of_streams_are_counted_with_istio_labels(tmp_path: Path) -> None:
    with running(tmp_path) as waypoint:
        trailers = [waypoint.call(count).trailing_metadata() for count in (1, 12, 300)]
        wait_until(lambda: waypoint.counts() == (313, 626), lambda: str(waypoint.counts()))
        for metric in METRICS:
            ((labels, _),) = waypoint.series(metric)
            assert labels["reporter"] == "waypoint"
            assert labels["request_protocol"] == "grpc"
            assert labels["grpc_response_status"] == "0"
            assert labels["source_principal"] == IDENTITY
            assert labels["destination_service_name"] == "web"
            assert labels.keys() == waypoint.series("istio_requests_total")[0][0].keys()
        # neither the counts nor a server's forgery reach the client
        assert all(not key.startswith("ztunnel-") for each in trailers for key, _ in each)


def test_caller_outside_the_mesh_is_unknown(tmp_path: Path) -> None:
    with running(tmp_path, peer={}) as waypoint:
        waypoint.call(2)
        wait_until(lambda: waypoint.counts() == (2, 4), lambda: str(waypoint.counts()))
        ((labels, _),) = waypoint.series(METRICS[0])
        assert labels["source_workload"] == labels["source_principal"] == "unknown"
        assert labels["connection_security_policy"] == "none"


def test_errors_without_messages_are_not_counted(tmp_path: Path) -> None:
    with running(tmp_path) as waypoint:
        with pytest.raises(grpc.RpcError) as caught:
            list(waypoint.channel.stream_stream("/s/Fail")(iter([b"message"])))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        waypoint.call(1)
        wait_until(lambda: waypoint.counts() == (1, 2), lambda: str(waypoint.counts()))
        assert "isn't a number" not in waypoint.envoy.log.read_text()
        assert "non-number" not in waypoint.envoy.log.read_text()


def test_stream_that_the_client_cancels_is_not_counted(tmp_path: Path) -> None:
    """The documented limit: Istio counts it."""
    with running(tmp_path) as waypoint:
        opened = threading.Event()

        def messages() -> Iterator[bytes]:
            yield b"message"
            opened.wait(10)

        call = waypoint.channel.stream_stream("/s/Double")(messages())
        next(call)
        call.cancel()
        opened.set()
        waypoint.call(1)
        wait_until(lambda: waypoint.counts() == (1, 2), lambda: str(waypoint.counts()))
        time.sleep(0.3)
        assert waypoint.counts() == (1, 2)


def test_disabled_metric_is_not_counted(tmp_path: Path) -> None:
    override = {"match": {"metric": "GRPC_REQUEST_MESSAGES"}, "disabled": True}
    obj = telemetry({"metrics": [{"overrides": [override]}]})
    with running(tmp_path, obj) as waypoint:
        waypoint.call(3)
        wait_until(lambda: waypoint.counts() == (0, 6), lambda: str(waypoint.counts()))


def test_requests_that_are_not_grpc_are_served_and_not_counted(tmp_path: Path) -> None:
    world = World()
    with Backend("web") as backend:
        vip = world.service("web", {80: ""}, [backend.port])
        with running_envoy(world.compile(), tmp_path) as envoy:
            assert request(envoy.port, vip).backend == "web"
            page = envoy.admin_get("/stats/prometheus")
            assert "istio_requests_total" in page
            assert not any(metric in page for metric in METRICS)


@pytest.mark.parametrize(("protocol", "is_counted"), [("http", False), ("", True), ("grpc", True)])
def test_ports_that_declare_http1_have_no_filters_for_it(protocol: str, is_counted: bool) -> None:
    world = World()
    world.service("web", {80: protocol}, [8080])
    assert ("grpc_stats" in str(world.compile().resources)) == is_counted
