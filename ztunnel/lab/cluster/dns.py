# SPDX-License-Identifier: Apache-2.0
"""The cluster DNS server of a lab node, for `<service>.<namespace>.svc.cluster.local`.

It serves UDP and TCP, and reloads objects when their directory changes. There is no upstream
server: queries for names outside the cluster are refused, except for those of the ConfigMap
kube-system/external-hosts.

    python -m ztunnel.lab.cluster.dns --objects DIR --address 10.96.0.10 --address fd00:10:96::a
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message

from ztunnel.dns.message import EDNS_PAYLOAD_BYTES, UDP_PAYLOAD_BYTES, encode
from ztunnel.lab.cluster.dns_zone import EXTERNAL_HOSTS, Zone, answer, build_zone
from ztunnel.lab.objects import Key, Object, key_of, parse_manifest

_TCP_IDLE_TIMEOUT_S = 10
_TCP_MAX_BYTES = 65535
_MTIME_RESOLUTION_NS = 50_000_000


class ZoneCache:
    """The zone of an object directory; files are parsed again when they change."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._mtime_ns = -1
        self._files: dict[Path, tuple[tuple[int, int], list[Object]]] = {}
        self._zone = Zone()

    def zone(self) -> Zone:
        """The current zone. The rename of a file changes the mtime of its directory."""
        with self._lock:
            mtime_ns = self._directory.stat().st_mtime_ns
            if mtime_ns != self._mtime_ns:
                self._zone = build_zone(self._load())
                # A second change within the resolution of mtime would not change it.
                is_settled = time.time_ns() - mtime_ns > _MTIME_RESOLUTION_NS
                self._mtime_ns = mtime_ns if is_settled else -1
            return self._zone

    def _load(self) -> Mapping[Key, Object]:
        files = {}
        for pattern in ("service.*.yaml", "endpointslice.*.yaml", _file_of(EXTERNAL_HOSTS)):
            for path in self._directory.glob(pattern):
                try:
                    stat = path.stat()
                    version = (stat.st_ino, stat.st_mtime_ns)
                    old = self._files.get(path)
                    if old is None or old[0] != version:
                        old = version, list(parse_manifest(path))
                    files[path] = old
                except FileNotFoundError:  # removed in the meantime, which changes the directory
                    continue
        self._files = files
        return {key_of(obj): obj for _, objects in files.values() for obj in objects}


def _file_of(key: Key) -> str:
    return f"{key.kind.lower()}.{key.namespace}.{key.name}.yaml"


def respond(wire: bytes, cache: ZoneCache, max_bytes: int | None) -> bytes | None:
    """The response to a message; None for messages that get none.

    `max_bytes`: the limit of a UDP response, at which it is truncated; None for TCP.
    """
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return None
    if query.flags & dns.flags.QR:
        return None  # responding to a response could loop
    reply = answer(query, cache.zone())
    if max_bytes is None:
        return encode(reply, _TCP_MAX_BYTES)
    return encode(reply, min(max(query.payload, UDP_PAYLOAD_BYTES), max_bytes))


class _UdpHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        wire, sock = self.request
        if reply := respond(wire, _cache_of(self.server), EDNS_PAYLOAD_BYTES):
            sock.sendto(reply, self.client_address)


class _TcpHandler(socketserver.StreamRequestHandler):
    timeout = _TCP_IDLE_TIMEOUT_S

    def handle(self) -> None:
        while len(head := self.rfile.read(2)) == 2:
            wire = self.rfile.read(struct.unpack("!H", head)[0])
            reply = respond(wire, _cache_of(self.server), None)
            if reply is None:
                return
            self.wfile.write(struct.pack("!H", len(reply)) + reply)


class _UdpServer(socketserver.UDPServer):
    cache: ZoneCache


class _TcpServer(socketserver.ThreadingTCPServer):
    cache: ZoneCache
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Disconnects and idle timeouts are not logged."""


def _cache_of(server: socketserver.BaseServer) -> ZoneCache:
    assert isinstance(server, _UdpServer | _TcpServer)
    return server.cache


def serve(addresses: list[str], cache: ZoneCache, port: int = 53) -> None:
    """Serve until the process exits."""
    threads = []
    for address in addresses:
        for base, handler in ((_UdpServer, _UdpHandler), (_TcpServer, _TcpHandler)):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server_class = type(base.__name__, (base,), {"address_family": family})
            server = server_class((address, port), handler)
            server.cache = cache
            threads.append(threading.Thread(target=server.serve_forever))
    for thread in threads:
        thread.start()


def main() -> None:
    """The entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description="cluster DNS of a lab node")
    parser.add_argument("--objects", type=Path, required=True, help="object directory")
    parser.add_argument("--address", action="append", required=True, help="address to serve")
    arguments = parser.parse_args()
    serve(arguments.address, ZoneCache(arguments.objects))


if __name__ == "__main__":
    main()
