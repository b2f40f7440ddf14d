# SPDX-License-Identifier: Apache-2.0
"""The cost of a stream and of a DATA frame, in this codec and in h2: `python bench/hbone_codec.py`.

Rounds alternate between both, so that other load affects both; the median counts. No sockets:
octets pass from one object to the other. Times are CPU time of this process, in microseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.settings

from ztunnel.hbone import constants
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.events import DataReceived

BAGGAGE = (
    b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=my-app,"
    b"service.name=my-app,service.version=latest"
)
STREAMS = 100  # per round: the limit of a peer
FRAMES = 200  # per round of the DATA benchmarks: 3.2 MB, within the stream window
FRAME = 16 * 1024


def request_headers(number: int) -> list[tuple[bytes, bytes]]:
    """Request headers of the proxy: the client's port and the trace differ each time."""
    return [
        (b":method", b"CONNECT"),
        (b":authority", b"10.244.2.7:80"),
        (b"baggage", BAGGAGE),
        (b"forwarded", b'for="10.244.1.5:%d"' % (20_000 + number % 40_000)),
        (b"traceparent", b"00-%032x-%016x-01" % (number * 7919, number)),
    ]


class Ours:
    """A pair of this codec's connections after the preface."""

    def __init__(self) -> None:
        self.client, self.server = Connection(Role.CLIENT), Connection(Role.SERVER)
        self.now = 0.0
        self.number = 0
        self.pump()

    def pump(self) -> None:
        self.now += 1.0
        for source, sink in ((self.server, self.client), (self.client, self.server)) * 2:
            if source.has_output:
                sink.receive(memoryview(source.take_output()), self.now)

    def open_stream(self) -> int:
        self.number += 1
        stream_id = self.client.request(request_headers(self.number))
        self.server.receive(memoryview(self.client.take_output()), self.now)
        self.server.respond(stream_id, 200, [(b"baggage", BAGGAGE)])
        self.client.receive(memoryview(self.server.take_output()), self.now)
        return stream_id

    def close_stream(self, stream_id: int) -> None:
        self.client.end_stream(stream_id)
        self.server.end_stream(stream_id)
        self.pump()


class Theirs:
    """A pair of h2 connections with the same windows and frame size."""

    def __init__(self) -> None:
        def end(client: bool) -> Any:
            config = h2.config.H2Configuration(client_side=client, header_encoding=None)
            connection = h2.connection.H2Connection(config)
            connection.initiate_connection()
            code = h2.settings.SettingCodes
            connection.update_settings(
                {
                    code.INITIAL_WINDOW_SIZE: constants.STREAM_WINDOW_BYTES,
                    code.MAX_FRAME_SIZE: constants.MAX_FRAME_BYTES,
                }
            )
            connection.increment_flow_control_window(
                constants.CONNECTION_WINDOW_BYTES - constants.DEFAULT_WINDOW_BYTES
            )
            return connection

        self.client, self.server = end(True), end(False)
        self.number = 0
        self.pump()

    def pump(self) -> None:
        for source, sink in ((self.client, self.server), (self.server, self.client)) * 2:
            sink.receive_data(source.data_to_send())

    def open_stream(self) -> int:
        self.number += 1
        stream_id: int = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, request_headers(self.number))
        self.server.receive_data(self.client.data_to_send())
        self.server.send_headers(stream_id, [(b":status", b"200"), (b"baggage", BAGGAGE)])
        self.client.receive_data(self.server.data_to_send())
        return stream_id

    def close_stream(self, stream_id: int) -> None:
        self.client.end_stream(stream_id)
        self.server.end_stream(stream_id)
        self.pump()


def timed(work: Callable[[], object], count: int) -> float:
    """Microseconds per call, for `count` calls."""
    start = time.process_time_ns()
    for _ in range(count):
        work()
    return (time.process_time_ns() - start) / 1000 / count


def streams(pair: Ours | Theirs) -> dict[str, float]:
    opened: list[int] = []
    pair.pump()
    cost = timed(lambda: opened.append(pair.open_stream()), STREAMS)
    for stream_id in opened:
        pair.close_stream(stream_id)
    return {"open a stream, both ends": cost}


def our_data(pair: Ours) -> dict[str, float]:
    stream_id = pair.open_stream()
    client, server = pair.client, pair.server
    buffer = bytearray(9 + FRAME)
    chunk = memoryview(buffer)

    def send() -> None:
        client.write_data_header_into(buffer, 0, stream_id, min(client.sendable(stream_id), FRAME))

    def receive() -> None:
        for event in server.receive(chunk, pair.now):
            if isinstance(event, DataReceived):
                server.consumed(stream_id, len(event.payload))

    costs = {"send a DATA frame": timed(send, FRAMES)}
    costs["receive a DATA frame"] = timed(receive, FRAMES)
    pair.pump()
    pair.close_stream(stream_id)
    return costs


def their_data(pair: Theirs) -> dict[str, float]:
    stream_id = pair.open_stream()
    payload = bytes(FRAME)
    wire: list[bytes] = []

    def send() -> None:
        pair.client.local_flow_control_window(stream_id)
        pair.client.send_data(stream_id, payload)
        wire.append(pair.client.data_to_send())

    def receive() -> None:
        for event in pair.server.receive_data(wire.pop()):
            pair.server.acknowledge_received_data(event.flow_controlled_length, stream_id)

    costs = {"send a DATA frame": timed(send, FRAMES)}
    costs["receive a DATA frame"] = timed(receive, FRAMES)
    pair.pump()
    pair.close_stream(stream_id)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    ours, theirs = Ours(), Theirs()
    results: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(rounds):
        for who, costs in (
            (0, streams(ours) | our_data(ours)),
            (1, streams(theirs) | their_data(theirs)),
        ):
            for name, cost in costs.items():
                results.setdefault(name, ([], []))[who].append(cost)
    print(f"{'µs of CPU, median of ' + str(rounds):34}{'ours':>8}{'h2':>8}{'ratio':>8}")
    for name, (mine, other) in results.items():
        a, b = statistics.median(mine), statistics.median(other)
        print(f"{name:34}{a:8.2f}{b:8.2f}{b / a:7.1f}×")


if __name__ == "__main__":
    main()
