# SPDX-License-Identifier: Apache-2.0
"""DNS messages, sans I/O: read what a client sent, answer from the mesh, or dress it for another.

Parsing is dnspython's; whatever it makes of hostile bytes ends here as None or FORMERR. What is
forwarded goes as it came, but for its id: EDNS, signatures and types that nobody knows yet stay
what they are.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
import dns.rrset

from ztunnel.mesh.dns_names import Entry

TTL = 30  # seconds, of answers and denials; istio ztunnel's
UDP_MAX = 1232  # bytes we ask others to send in one datagram (DNS flag day 2020)
UDP_PLAIN = 512  # RFC 1035 section 4.2.1: what a client without EDNS takes
MOST_RECORDS = 1000  # of one answer: a message holds 64 KiB
HEADER = struct.Struct("!HHHHHH")

_IN, _CLASS = dns.rdataclass.IN, struct.Struct("!HH")
Lookup = Callable[[str], Entry | None]


@dataclass(frozen=True, slots=True)
class Question:
    """What a query is about, as far as we must know. `name` is lower case, without final dot,
    empty when no name of ours could be like it."""

    id: int
    raw: bytes  # the question section as it came
    name: str
    rdtype: int


def read_question(wire: bytes) -> Question | None:
    """The question of a query; None when it is no query that could be answered at all.

    Other opcodes and classes, and several questions, come back without a name: not ours.
    """
    if len(wire) < HEADER.size:
        return None
    number, flags, count, *_ = HEADER.unpack_from(wire)
    if flags & dns.flags.QR:
        return None  # a response: answering it could loop
    end = _end_of_question(wire) if count == 1 else None
    if end is None:
        return Question(number, b"", "", 0) if count != 1 else None
    raw = wire[HEADER.size : end]
    rdtype, rdclass = _CLASS.unpack_from(wire, end - _CLASS.size)
    is_query = dns.opcode.from_flags(flags) == dns.opcode.QUERY
    name = _text(raw[: -_CLASS.size]) if is_query and rdclass == _IN else ""
    return Question(number, raw, name, rdtype)


def answer(
    wire: bytes, look_up: Lookup, *, shuffle: random.Random, limit: int | None = None
) -> bytes | None:
    """The reply from the mesh; None when the name is not of the mesh.

    `limit` is the largest reply in bytes, by default what the client takes in a datagram.
    """
    question = read_question(wire)
    entry = look_up(question.name) if question is not None and question.name else None
    if entry is None:
        return None
    try:
        query = dns.message.from_wire(wire)
    except Exception:  # the parser's, of which hostile bytes get more kinds than it documents
        return failure(wire, dns.rcode.FORMERR)
    reply = dns.message.make_response(query, recursion_available=True, our_payload=UDP_MAX)
    if query.edns > 0:
        reply.use_edns(0, payload=UDP_MAX)
        reply.set_rcode(dns.rcode.BADVERS)
        return reply.to_wire()
    reply.flags |= dns.flags.AA
    try:
        _fill(reply, query.question[0].name, query.question[0].rdtype, entry, shuffle)
        return encoded(reply, max(query.payload, UDP_PLAIN) if limit is None else limit)
    except dns.exception.DNSException:  # the mesh holds a name that can be none in DNS
        return failure(wire, dns.rcode.SERVFAIL)


def encoded(reply: dns.message.Message, limit: int) -> bytes:
    """A reply of at most `limit` bytes: what does not fit is left out, and TC says so."""
    try:
        return reply.to_wire(max_size=limit)
    except dns.exception.TooBig:
        pass
    reply.answer, reply.authority, reply.additional = [], [], []
    reply.flags |= dns.flags.TC
    return reply.to_wire()


def udp_limit(wire: bytes) -> int:
    """The largest reply that a client takes in a datagram: what it says by EDNS (RFC 6891).

    No limit of ours: a reply goes over the pod's loopback, where nothing is fragmented.
    """
    try:
        payload = dns.message.from_wire(wire, continue_on_error=True).payload
    except Exception:  # as above
        return UDP_PLAIN
    return max(int(payload), UDP_PLAIN)


def failure(wire: bytes, rcode: dns.rcode.Rcode) -> bytes | None:
    """A reply without data that says what went wrong; None for what must not be answered."""
    if len(wire) < HEADER.size:
        return None
    number, flags, count, *_ = HEADER.unpack_from(wire)
    if flags & dns.flags.QR:
        return None
    end = _end_of_question(wire) if count == 1 else None
    question = b"" if end is None else wire[HEADER.size : end]
    kept = flags & (0x7800 | dns.flags.RD | dns.flags.CD)  # the opcode, and what the client wants
    flags = dns.flags.QR | dns.flags.RA | kept | int(rcode)
    return HEADER.pack(number, flags, 1 if question else 0, 0, 0, 0) + question


def with_id(wire: bytes, number: int) -> bytes:
    """The same message under another id."""
    return number.to_bytes(2, "big") + wire[2:]


def is_answer_to(question: Question, number: int, wire: bytes) -> bool:
    """Whether a message answers what was asked under `number`: id and question as they were."""
    if len(wire) < HEADER.size:
        return False
    found, flags, count, *_ = HEADER.unpack_from(wire)
    if found != number or not flags & dns.flags.QR:
        return False
    if count == 0:  # servers that can't read a query echo none of it
        return bool(flags & 0xF)
    asked = question.raw
    return wire[HEADER.size : HEADER.size + len(asked)].lower() == asked.lower()


def is_truncated(wire: bytes) -> bool:
    """Whether the server says that the answer did not fit."""
    return bool(HEADER.unpack_from(wire)[1] & dns.flags.TC)


def _fill(
    reply: dns.message.Message,
    name: dns.name.Name,
    rdtype: dns.rdatatype.RdataType,
    entry: Entry,
    shuffle: random.Random,
) -> None:
    if not entry.exists:
        reply.set_rcode(dns.rcode.NXDOMAIN)
        reply.authority.append(_soa(entry.zone))
        return
    if entry.alias and rdtype != dns.rdatatype.CNAME:
        target = dns.name.from_text(entry.alias)
        alias = _record(dns.rdtypes.ANY.CNAME.CNAME, dns.rdatatype.CNAME, target)
        reply.answer.append(_rrset(name, [alias]))
        name = target
    records = _records(entry, rdtype)
    if records:
        shuffle.shuffle(records)  # clients take the first
        reply.answer.append(_rrset(name, records[:MOST_RECORDS]))
    else:
        reply.authority.append(_soa(entry.zone))
    if rdtype == dns.rdatatype.SRV:
        _add_hosts(reply, entry)


def _records(entry: Entry, rdtype: int) -> list[dns.rdata.Rdata]:
    if rdtype == dns.rdatatype.SRV:
        return [
            _record(
                dns.rdtypes.IN.SRV.SRV,
                dns.rdatatype.SRV,
                *(0, 100, target.port, dns.name.from_text(target.host)),
            )
            for target in entry.targets
        ]
    return _address_records(entry.addresses, (rdtype,))


def _address_records(addresses: Iterable[str], rdtypes: tuple[int, ...]) -> list[dns.rdata.Rdata]:
    found: list[dns.rdata.Rdata] = []
    for ip in addresses:
        if ":" not in ip and dns.rdatatype.A in rdtypes:
            found.append(_record(dns.rdtypes.IN.A.A, dns.rdatatype.A, ip))
        elif ":" in ip and dns.rdatatype.AAAA in rdtypes:
            found.append(_record(dns.rdtypes.IN.AAAA.AAAA, dns.rdatatype.AAAA, ip))
    return found


def _add_hosts(reply: dns.message.Message, entry: Entry) -> None:
    for target in {target.host: target for target in entry.targets[:MOST_RECORDS]}.values():
        for rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            if records := _address_records(target.addresses, (rdtype,)):
                reply.additional.append(_rrset(dns.name.from_text(target.host), records))


def _soa(zone: str) -> dns.rrset.RRset:
    origin = dns.name.from_text(zone)
    soa = _record(
        dns.rdtypes.ANY.SOA.SOA,
        dns.rdatatype.SOA,
        dns.name.from_text("ns.dns", origin),
        dns.name.from_text("hostmaster", origin),
        *(1, 7200, 1800, 86400, TTL),
    )
    return _rrset(origin, [soa])


def _record(
    kind: Callable[..., dns.rdata.Rdata], rdtype: dns.rdatatype.RdataType, *content: object
) -> dns.rdata.Rdata:
    return kind(_IN, rdtype, *content)


def _rrset(name: dns.name.Name, records: Iterable[dns.rdata.Rdata]) -> dns.rrset.RRset:
    return dns.rrset.from_rdata_list(name, TTL, list(records))


def _end_of_question(wire: bytes) -> int | None:
    """Where the only question ends: an uncompressed name, type and class. None when cut off."""
    at = HEADER.size
    while at < len(wire) and wire[at]:
        if wire[at] > 63:  # a pointer: there is nothing before it to point to
            return None
        at += wire[at] + 1
    end = at + 1 + _CLASS.size
    return end if end <= len(wire) and at - HEADER.size < 255 else None


def _text(raw: bytes) -> str:
    """A name as the mesh writes it, empty for one that has anything but host names' characters."""
    labels, at = [], 0
    while raw[at]:
        labels.append(raw[at + 1 : at + 1 + raw[at]])
        at += raw[at] + 1
    try:
        text = [label.decode("ascii").lower() for label in labels]
    except UnicodeDecodeError:
        return ""
    plain = all(label.replace("-", "").replace("_", "").isalnum() for label in text)
    return ".".join(text) if plain else ""
