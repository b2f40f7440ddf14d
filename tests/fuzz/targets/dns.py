# SPDX-License-Identifier: Apache-2.0
"""DNS messages of pods and servers, with the names of a small mesh.

The parser never raises; a reply is well-formed, fits the limit of the client, has the ID and
question of the query, and does not answer another query.
"""

from __future__ import annotations

import random
import struct
from ipaddress import IPv6Address

import dns.exception
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.fuzz.target import Target
from ztunnel.dns import message
from ztunnel.dns.addresses import MAX_RECORDS, answer_addresses, without_addresses
from ztunnel.mesh.dns_names import DnsAnswer, lookup
from ztunnel.mesh.model import Endpoint, Service, ServicePort
from ztunnel.mesh.state import MeshState

WEB, DB = "web.shop.svc.cluster.local", "db.shop.svc.cluster.local"


class _Change:
    services = (
        Service(
            namespace="shop",
            name="web",
            hostname=WEB,
            vips=("10.96.0.7", "fd00:96::7"),
            ports=(ServicePort(80, "http"),),
        ),
        Service(
            namespace="shop",
            name="db",
            hostname=DB,
            ports=(ServicePort(5432, "sql"),),
            endpoints=(
                Endpoint(address="10.244.1.8", ports={"sql": 5432}, hostname="db-0"),
                Endpoint(address="fd00::8", ports={"sql": 5432}),
            ),
        ),
        Service(namespace="shop", name="out", hostname="*.example.com", vips=("240.240.0.1",)),
    )
    workloads = removed_workloads = removed_services = policies = removed_policies = ()


MESH = MeshState()
MESH.apply(_Change())


def _look_up(name: str) -> DnsAnswer | None:
    return lookup(MESH, "shop", name)


def _is_inside(ip: str) -> bool:
    return ip.startswith(("10.", "fd"))


def _check_filter(octets: bytes) -> None:
    """A response of a name server never shows an address of the cluster to a gateway's Envoy."""
    assert len(answer_addresses(octets)) <= MAX_RECORDS
    shown, dropped = without_addresses(octets, _is_inside)
    if shown is None:
        return
    for address in map(IPv6Address, answer_addresses(shown)):
        assert not _is_inside(str(address.ipv4_mapped or address))
    try:
        reply = dns.message.from_wire(shown)
    except dns.exception.DNSException:
        assert len(octets) < 12 or not shown[6:8] > b"\0\0", "records that cannot be read"
        return
    for record in (record for section in reply.sections for rrset in section for record in rrset):
        assert not _is_inside(getattr(record, "address", ""))
    assert dropped == 0 or shown != octets


def check(octets: bytes) -> None:
    _check_filter(octets)
    question = message.read_question(octets)
    limit = message.udp_limit(octets)
    assert 512 <= limit <= 65535
    for rcode in (dns.rcode.SERVFAIL, dns.rcode.FORMERR):
        refusal = message.error_response(octets, rcode)
        if refusal is not None:
            _check_reply(octets, refusal, limit)
    if question is None:
        assert message.answer(octets, _look_up, shuffle=random.Random(1)) is None
        return
    if question.name:
        named = dns.name.from_text(question.name).to_wire()
        assert named is not None
        assert question.raw[:-4].lower() == named
    reply = message.answer(octets, _look_up, shuffle=random.Random(1))
    if reply is not None:
        assert question.name
        _check_reply(octets, reply, limit)
        assert message.is_response_to(question, question.id, reply)
        assert not message.is_response_to(question, question.id ^ 1, reply)
    assert message.with_id(octets, question.id) == octets
    if message.is_response_to(question, question.id, octets):
        raise AssertionError("a query is an answer to itself")


def _check_reply(octets: bytes, reply: bytes, limit: int) -> None:
    assert len(reply) <= limit
    assert reply[:2] == octets[:2]
    assert reply[2] & 0x80, "no response"
    if reply[2] & 0x78 == dns.opcode.QUERY:  # not so for other opcodes
        assert len(dns.message.from_wire(reply).question) <= 1


_HEADER = struct.Struct("!HHHHHH")
_LABELS = ("web", "shop", "svc", "cluster", "local", "db", "db-0", "_sql", "_tcp", "example", "com")
_TYPES = (1, 28, 33, 5, 6, 255, 16, 65, 252, 0, 41)


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    """Another question with the same header, with the rest of the message, or with another EDNS
    record."""
    head = bytearray(octets[:12].ljust(12, b"\0"))
    if chance.random() < 0.3:
        head[chance.randrange(2, 12)] = chance.getrandbits(8) & chance.getrandbits(8)
    if chance.random() < 0.5:
        name = chance.choice((WEB, DB, f"_sql._tcp.{DB}", "a.example.com", "web", "web.shop"))
        labels = name.split(".")
    else:
        labels = chance.choices(_LABELS, k=chance.randint(0, 8))
    if chance.random() < 0.3:
        labels.insert(chance.randrange(len(labels) + 1), chance.choice(_LABELS))
    question = b"".join(bytes((len(each),)) + each.encode() for each in labels) + b"\0"
    if chance.random() < 0.2:
        question = question.swapcase()
    question += struct.pack("!HH", chance.choice(_TYPES), chance.choice((1, 1, 1, 1, 3, 255)))
    rest = octets[12 + len(question) :]
    if chance.random() < 0.5:
        rest = b"\0" + struct.pack(
            "!HHIH", 41, chance.getrandbits(16), chance.choice((0, 1 << 15, 1 << 16)), 0
        )
        head[10:12] = b"\0\1"
    return bytes(head) + question + rest


def _query(name: str, rdtype: str, **options: object) -> bytes:
    query = dns.message.make_query(name, rdtype, id=7, **options)  # type: ignore[arg-type]
    return query.to_wire()


def _response(*answers: str) -> bytes:
    reply = dns.message.make_response(dns.message.make_query(WEB, "A", id=7))
    for text in answers:
        kind = "AAAA" if ":" in text else "A"
        reply.answer.append(dns.rrset.from_text(reply.question[0].name, 60, "IN", kind, text))
    return reply.to_wire()


TARGET = Target(
    check,
    seeds=(
        _query(WEB, "A"),
        _query(WEB, "AAAA", use_edns=0, payload=4096),
        _query(f"_sql._tcp.{DB}", "SRV", use_edns=0, want_dnssec=True),
        _query("a.example.com.shop.svc.cluster.local", "A"),
        _query("10-244-1-8.db.shop", "ANY", use_edns=1),
        _query("nothing.web.shop.svc.cluster.local", "MX"),
        _response(),
        _response("10.0.0.1", "192.0.2.1", "fd00::1"),
        _HEADER.pack(1, 0x0100, 2, 0, 0, 0) + b"\0\0\1\0\1" * 2,
    ),
    mutate=_mutate,
    words=(b"\xc0\x0c", b"\0\0\x29", b"\x03web\x04shop\x03svc", b"\0\1\0\1", b"\x3f", b"\x40"),
    max_len=600,
)
