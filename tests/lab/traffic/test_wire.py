# SPDX-License-Identifier: Apache-2.0
"""Between nodes, pods exchange only TLS to port 15008."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.helpers.harness import addresses, client
from tests.lab.helpers.pcap import streams, tls_records
from tests.support.waiting import wait_until
from ztunnel.lab import Lab

HANDSHAKE, APPLICATION_DATA = 22, 23  # TLS record types, RFC 8446 5.1


@contextmanager
def capture(lab: Lab, path: Path) -> Iterator[None]:
    """Capture all packets on the bridge of the underlay into a pcap file."""
    argv = ["ip", "netns", "exec", lab.names.underlay_netns, "tcpdump"]
    argv += ["-i", "br0", "-U", "-n", "-s", "0", "--immediate-mode", "-w", str(path)]
    with subprocess.Popen([*argv, "-Z", "root"], stderr=subprocess.PIPE, text=True) as tcpdump:
        try:
            assert tcpdump.stderr is not None
            while "listening on" not in tcpdump.stderr.readline():
                assert tcpdump.poll() is None, "tcpdump died"
            yield
        finally:
            tcpdump.terminate()
            tcpdump.wait(10)


def _lines(path: Path, *expression: str) -> list[str]:
    argv = ["tcpdump", "-nn", "-r", str(path), *expression]
    return subprocess.run(
        argv, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()


@pytest.mark.parametrize("family", [4, 6])
def test_wire_carries_only_tls_to_port_15008(lab: Lab, family: int, tmp_path: Path) -> None:
    lab.restart("node1", "proxy")  # so that the capture contains the start of a tunnel
    token = secrets.token_hex(32)
    mine, target = addresses(lab, "client")[family], addresses(lab, "server")[family]
    pcap = tmp_path / "wire.pcap"
    with capture(lab, pcap):
        assert client(lab, "client", "echo", target, 7000, token * 50) == {"said": token * 50}
        wait_until(lambda: _lines(pcap, "tcp", "and", "port", "15008"), "packets to be written")
    assert token.encode() not in pcap.read_bytes()
    between = ("host", mine, "and", "host", target)
    assert _lines(pcap, *between, "and", "tcp", "port", "15008")
    assert _lines(pcap, *between, "and", "not", "tcp", "port", "15008") == []
    tunnels = {flow: data for flow, data in streams(pcap).items() if flow.target == target}
    assert {(flow.source, flow.target_port) for flow in tunnels} == {(mine, 15008)}
    for data in tunnels.values():
        types = tls_records(data)
        assert types[0] == HANDSHAKE
        assert APPLICATION_DATA in types


def test_plaintext_to_unenrolled_pods_is_visible(lab: Lab, tmp_path: Path) -> None:
    """A control: the same capture shows a token that is not encrypted."""
    token = secrets.token_hex(32)
    target = addresses(lab, "server", "plain")[4]
    pcap = tmp_path / "wire.pcap"
    with capture(lab, pcap):
        client(lab, "client", "echo", target, 7000, token)
        wait_until(lambda: token.encode() in pcap.read_bytes(), "the token to be captured")
