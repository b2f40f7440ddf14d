# SPDX-License-Identifier: Apache-2.0
"""A DNS server on 127.0.0.1 whose answers a test sets, and a configuration that uses it."""

from __future__ import annotations

import copy
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import dns.message
import dns.rcode
import dns.rrset

from ztunnel.l7.config import GatewayConfig


class NameServer:
    """Answers A and AAAA queries by UDP from `names`; `queried` has the names of all queries."""

    def __init__(self, **names: str) -> None:
        self.names: dict[str, tuple[str, ...]] = {}
        self.queried: set[str] = set()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def _serve(self) -> None:
        while True:
            try:
                wire, client = self._sock.recvfrom(4096)
            except OSError:
                return
            reply = dns.message.make_response(dns.message.from_wire(wire))
            question = reply.question[0]
            name = question.name.to_text(omit_final_dot=True).lower()
            self.queried.add(name)
            ips = [ip for ip in self.names.get(name, ()) if (":" in ip) == (question.rdtype == 28)]
            if name not in self.names:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            elif ips and question.rdtype in (1, 28):
                kind = "A" if question.rdtype == 1 else "AAAA"
                reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", kind, *ips))
            self._sock.sendto(reply.to_wire(), client)


def resolving(config: GatewayConfig, server: NameServer, *, loopback: bool = True) -> GatewayConfig:
    """Return the configuration with this resolver; `loopback`: names may resolve to 127.0.0.0/8."""
    found = copy.deepcopy(config)
    for cache in _dns_caches(found.resources):
        resolver = cache["typed_dns_resolver_config"]["typed_config"]
        address = {"address": "127.0.0.1", "port_value": server.port}
        resolver["resolvers"] = [{"socket_address": address}]
        if loopback:
            ranges = cache["resolved_address_filter"]["ranges"]
            cache["resolved_address_filter"]["ranges"] = [
                each for each in ranges if each["address_prefix"] != "127.0.0.0"
            ]
    return found


def _dns_caches(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "resolved_address_filter" in value:
            yield value
        for each in value.values():
            yield from _dns_caches(each)
    elif isinstance(value, list):
        for each in value:
            yield from _dns_caches(each)
