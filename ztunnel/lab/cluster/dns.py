# SPDX-License-Identifier: Apache-2.0
"""Cluster DNS of one lab node: `<service>.<namespace>.svc.cluster.local`, and nothing else.

`answer` is pure; `main` serves it over UDP and TCP on the given addresses and reads the object
directory anew when it changed. There is no upstream: names outside the cluster are refused.

    python -m ztunnel.lab.cluster.dns --objects DIR --address 10.96.0.10 --address fd00:10:96::a
"""

from __future__ import annotations

import argparse
import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from ztunnel.dns.message import EDNS_PAYLOAD_BYTES, UDP_PAYLOAD_BYTES, encode
from ztunnel.lab.cluster.services import SERVICE_LABEL
from ztunnel.lab.objects import Key, Object, Objects, key_of, of_kind, parse

ZONE = dns.name.from_text("cluster.local.")
SERVICES = dns.name.from_text("svc.cluster.local.")
TTL = 5  # seconds, as CoreDNS' kubernetes plugin

_SOA = f"ns.dns.{ZONE} hostmaster.{ZONE} 1 7200 1800 86400 {TTL}"
_TCP_IDLE = 10  # seconds
_TICK = 50_000_000  # nanoseconds


@dataclass
class Zone:
    """Addresses and aliases by name. A name with neither exists: its answer is "no data"."""

    addresses: dict[dns.name.Name, list[str]] = field(default_factory=dict)
    aliases: dict[dns.name.Name, dns.name.Name] = field(default_factory=dict)

    def add(self, name: dns.name.Name, ips: list[str]) -> None:
        """Add addresses, and the empty names above, which exist too."""
        self.addresses.setdefault(name, []).extend(ips)
        while name != ZONE:
            name = name.parent()
            self.addresses.setdefault(name, [])


def build_zone(objects: Objects) -> Zone:
    """The zone of all services: ClusterIPs, pod addresses when headless, CNAMEs when external."""
    zone = Zone()
    zone.add(SERVICES, [])
    slices: dict[tuple[str, str], list[Object]] = {}
    for piece in of_kind(objects, "EndpointSlice"):
        service = piece["metadata"].get("labels", {}).get(SERVICE_LABEL, "")
        slices.setdefault((key_of(piece).namespace, service), []).append(piece)
    for service in of_kind(objects, "Service"):
        _add_service(zone, service, slices.get(key_of(service)[1:], []))
    return zone


def _add_service(zone: Zone, service: Object, slices: list[Object]) -> None:
    key, spec = key_of(service), service["spec"]
    name = dns.name.from_text(f"{key.name}.{key.namespace}", SERVICES)
    if spec.get("type") == "ExternalName":
        zone.add(name, [])
        zone.aliases[name] = dns.name.from_text(spec["externalName"])
        return
    zone.add(name, [ip for ip in spec.get("clusterIPs") or [] if ip != "None"])
    if spec.get("clusterIP") != "None":
        return
    for piece in slices:
        for endpoint in piece.get("endpoints") or []:
            if (endpoint.get("conditions") or {}).get("ready", True):
                zone.add(name, endpoint["addresses"])
                if host := endpoint.get("hostname"):
                    zone.add(dns.name.from_text(host, name), endpoint["addresses"])


def answer(query: dns.message.Message, zone: Zone) -> dns.message.Message:
    """The authoritative answer; REFUSED outside `cluster.local`, NOTIMP for what is no query."""
    reply = dns.message.make_response(query)
    if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
        reply.set_rcode(dns.rcode.NOTIMP)
        return reply
    question = query.question[0]
    if not question.name.is_subdomain(ZONE) or question.rdclass != dns.rdataclass.IN:
        reply.set_rcode(dns.rcode.REFUSED)
        return reply
    reply.flags |= dns.flags.AA
    name = dns.name.Name([label.lower() for label in question.name.labels])
    if name in zone.aliases:
        target = zone.aliases[name]
        alias = target.to_text()
        reply.answer.append(dns.rrset.from_text(question.name, TTL, "IN", "CNAME", alias))
        if texts := _texts(zone.addresses.get(target, []), question.rdtype):
            reply.answer.append(dns.rrset.from_text_list(target, TTL, "IN", question.rdtype, texts))
        return reply
    if name not in zone.addresses:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    elif texts := _texts(zone.addresses[name], question.rdtype):
        reply.answer.append(
            dns.rrset.from_text_list(question.name, TTL, "IN", question.rdtype, texts)
        )
        return reply
    reply.authority.append(dns.rrset.from_text(ZONE, TTL, "IN", "SOA", _SOA))
    return reply


def _texts(ips: list[str], rdtype: dns.rdatatype.RdataType) -> list[str]:
    """The addresses of the asked family in random order: clients take the first."""
    if rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA):
        return []
    chosen = [ip for ip in ips if (":" in ip) == (rdtype == dns.rdatatype.AAAA)]
    return random.sample(chosen, len(chosen))


class Directory:
    """The zone of an object directory, re-read file by file as they change."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._seen = -1
        self._files: dict[Path, tuple[tuple[int, int], list[Object]]] = {}
        self._zone = Zone()

    def zone(self) -> Zone:
        """The present zone. A renamed file changes its directory's time: that is the signal."""
        with self._lock:
            changed = self._directory.stat().st_mtime_ns
            if changed != self._seen:
                self._zone = build_zone(self._load())
                # file times tick coarsely: a second change within one tick would look like none
                settled = time.time_ns() - changed > _TICK
                self._seen = changed if settled else -1
            return self._zone

    def _load(self) -> Mapping[Key, Object]:
        files = {}
        for kind in ("service", "endpointslice"):
            for path in self._directory.glob(f"{kind}.*.yaml"):
                try:
                    stat = path.stat()
                    stamp = (stat.st_ino, stat.st_mtime_ns)
                    old = self._files.get(path)
                    files[path] = old if old and old[0] == stamp else (stamp, list(parse(path)))
                except FileNotFoundError:  # removed meanwhile: the directory will have changed
                    continue
        self._files = files
        return {key_of(obj): obj for _, objects in files.values() for obj in objects}


def respond(wire: bytes, directory: Directory, limit: int | None) -> bytes | None:
    """The reply to one message, truncated to `limit` bytes for UDP; None when none is due."""
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return None
    if query.flags & dns.flags.QR:
        return None  # a response: answering it could loop
    reply = answer(query, directory.zone())
    return encode(
        reply, 65535 if limit is None else min(max(query.payload, UDP_PAYLOAD_BYTES), limit)
    )


class _UdpHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        wire, sock = self.request
        if reply := respond(wire, _directory(self.server), EDNS_PAYLOAD_BYTES):
            sock.sendto(reply, self.client_address)


class _TcpHandler(socketserver.StreamRequestHandler):
    timeout = _TCP_IDLE

    def handle(self) -> None:
        while len(head := self.rfile.read(2)) == 2:
            wire = self.rfile.read(struct.unpack("!H", head)[0])
            reply = respond(wire, _directory(self.server), None)
            if reply is None:
                return
            self.wfile.write(struct.pack("!H", len(reply)) + reply)


class _UdpServer(socketserver.UDPServer):
    directory: Directory


class _TcpServer(socketserver.ThreadingTCPServer):
    directory: Directory
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or idled is no news."""


def _directory(server: socketserver.BaseServer) -> Directory:
    assert isinstance(server, _UdpServer | _TcpServer)
    return server.directory


def serve(addresses: list[str], directory: Directory, port: int = 53) -> None:
    """Serve until the process ends."""
    threads = []
    for address in addresses:
        for base, handler in ((_UdpServer, _UdpHandler), (_TcpServer, _TcpHandler)):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            bound = type(base.__name__, (base,), {"address_family": family})
            server = bound((address, port), handler)
            server.directory = directory
            threads.append(threading.Thread(target=server.serve_forever))
    for thread in threads:
        thread.start()


def main() -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description="cluster DNS of a lab node")
    parser.add_argument("--objects", type=Path, required=True)
    parser.add_argument("--address", action="append", required=True)
    arguments = parser.parse_args()
    serve(arguments.address, Directory(arguments.objects))


if __name__ == "__main__":
    main()
