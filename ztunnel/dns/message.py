# SPDX-License-Identifier: Apache-2.0
"""DNS messages without I/O: parses queries, and answers them from the mesh.

The parser is dnspython; hostile input results in None or FORMERR. A forwarded message changes only
in its ID: EDNS, signatures and unknown record types stay as they are.
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

from ztunnel.mesh.dns_names import DnsAnswer

TTL_S = 30  # of positive and negative answers, as in istio/ztunnel
EDNS_PAYLOAD_BYTES = 1232  # EDNS payload size that this server advertises (DNS flag day 2020)
UDP_PAYLOAD_BYTES = 512  # limit of a client without EDNS (RFC 1035, 4.2.1)
MAX_ANSWER_RECORDS = 1000  # of one answer; a message holds at most 64 KiB
HEADER = struct.Struct("!HHHHHH")

_IN, _CLASS = dns.rdataclass.IN, struct.Struct("!HH")
Lookup = Callable[[str], DnsAnswer | None]


@dataclass(frozen=True, slots=True)
class Question:
    """The question of a query. `name` is lower case without final dot, empty if not a host name."""

    id: int
    raw: bytes  # the question section as it came
    name: str
    rdtype: int


def read_question(wire: bytes) -> Question | None:
    """Parse the question of a query; None if the message cannot be answered at all.

    Other opcodes and classes, and several questions, return an empty name: not in the mesh.
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
    name = _parse_name(raw[: -_CLASS.size]) if is_query and rdclass == _IN else ""
    return Question(number, raw, name, rdtype)


def question_name(wire: bytes) -> str:
    """Return the name that a response answers, as `Question.name`; empty without one question."""
    if len(wire) < HEADER.size or HEADER.unpack_from(wire)[2] != 1:
        return ""
    end = _end_of_question(wire)
    return "" if end is None else _parse_name(wire[HEADER.size : end - _CLASS.size])


def answer(
    wire: bytes, look_up: Lookup, *, shuffle: random.Random, limit: int | None = None
) -> bytes | None:
    """Return the response from the mesh; None if the name is not in the mesh.

    `limit` is the maximum size in bytes, by default what the client accepts over UDP.
    """
    question = read_question(wire)
    entry = look_up(question.name) if question is not None and question.name else None
    if entry is None:
        return None
    try:
        query = dns.message.from_wire(wire)
    except Exception:  # hostile input raises more exception types than the parser documents
        return error_response(wire, dns.rcode.FORMERR)
    reply = dns.message.make_response(
        query, recursion_available=True, our_payload=EDNS_PAYLOAD_BYTES
    )
    if query.edns > 0:
        reply.use_edns(0, payload=EDNS_PAYLOAD_BYTES)
        reply.set_rcode(dns.rcode.BADVERS)
        return reply.to_wire()
    reply.flags |= dns.flags.AA
    try:
        _fill(reply, query.question[0].name, query.question[0].rdtype, entry, shuffle)
        return encode(reply, max(query.payload, UDP_PAYLOAD_BYTES) if limit is None else limit)
    except dns.exception.DNSException:  # the mesh contains a name that is invalid in DNS
        return error_response(wire, dns.rcode.SERVFAIL)


def encode(reply: dns.message.Message, limit: int) -> bytes:
    """Encode a response of at most `limit` bytes; truncate (TC) what does not fit."""
    try:
        return reply.to_wire(max_size=limit)
    except dns.exception.TooBig:
        pass
    reply.answer, reply.authority, reply.additional = [], [], []
    reply.flags |= dns.flags.TC
    return reply.to_wire()


def udp_limit(wire: bytes) -> int:
    """Return the UDP payload size in bytes that a client accepts (EDNS, RFC 6891).

    There is no limit of our own: responses use the pod's loopback, without fragmentation.
    """
    try:
        payload = dns.message.from_wire(wire, continue_on_error=True).payload
    except Exception:  # as above
        return UDP_PAYLOAD_BYTES
    return max(int(payload), UDP_PAYLOAD_BYTES)


def error_response(wire: bytes, rcode: dns.rcode.Rcode) -> bytes | None:
    """Return an error response without records; None if the message must not be answered."""
    if len(wire) < HEADER.size:
        return None
    number, flags, count, *_ = HEADER.unpack_from(wire)
    if flags & dns.flags.QR:
        return None
    end = _end_of_question(wire) if count == 1 else None
    question = b"" if end is None else wire[HEADER.size : end]
    copied = flags & (0x7800 | dns.flags.RD | dns.flags.CD)  # opcode, RD and CD of the query
    flags = dns.flags.QR | dns.flags.RA | copied | int(rcode)
    return HEADER.pack(number, flags, 1 if question else 0, 0, 0, 0) + question


def with_id(wire: bytes, number: int) -> bytes:
    """Return the message with another ID."""
    return number.to_bytes(2, "big") + wire[2:]


def is_response_to(question: Question, number: int, wire: bytes) -> bool:
    """Return whether a message responds to `question` with the ID `number`."""
    if len(wire) < HEADER.size:
        return False
    found, flags, count, *_ = HEADER.unpack_from(wire)
    if found != number or not flags & dns.flags.QR:
        return False
    if count == 0:  # servers that cannot parse a query do not echo the question
        return bool(flags & 0xF)
    expected = question.raw
    return wire[HEADER.size : HEADER.size + len(expected)].lower() == expected.lower()


def is_truncated(wire: bytes) -> bool:
    """Return whether the response is truncated (TC)."""
    return bool(HEADER.unpack_from(wire)[1] & dns.flags.TC)


def _fill(
    reply: dns.message.Message,
    name: dns.name.Name,
    rdtype: dns.rdatatype.RdataType,
    entry: DnsAnswer,
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
        shuffle.shuffle(records)  # clients use the first record
        reply.answer.append(_rrset(name, records[:MAX_ANSWER_RECORDS]))
    else:
        reply.authority.append(_soa(entry.zone))
    if rdtype == dns.rdatatype.SRV:
        _add_hosts(reply, entry)


def _records(entry: DnsAnswer, rdtype: int) -> list[dns.rdata.Rdata]:
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


def _add_hosts(reply: dns.message.Message, entry: DnsAnswer) -> None:
    for target in {target.host: target for target in entry.targets[:MAX_ANSWER_RECORDS]}.values():
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
        *(1, 7200, 1800, 86400, TTL_S),
    )
    return _rrset(origin, [soa])


def _record(
    kind: Callable[..., dns.rdata.Rdata], rdtype: dns.rdatatype.RdataType, *content: object
) -> dns.rdata.Rdata:
    return kind(_IN, rdtype, *content)


def _rrset(name: dns.name.Name, records: Iterable[dns.rdata.Rdata]) -> dns.rrset.RRset:
    return dns.rrset.from_rdata_list(name, TTL_S, list(records))


def _end_of_question(wire: bytes) -> int | None:
    """Return the offset after the question (uncompressed name, type, class); None if cut off."""
    at = HEADER.size
    while at < len(wire) and wire[at]:
        if wire[at] > 63:  # a compression pointer has no earlier name to point to
            return None
        at += wire[at] + 1
    end = at + 1 + _CLASS.size
    return end if end <= len(wire) and at - HEADER.size < 255 else None


def _parse_name(raw: bytes) -> str:
    """Decode a name to the form used in the mesh; empty if it is not a host name."""
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
