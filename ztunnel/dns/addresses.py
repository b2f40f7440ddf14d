# SPDX-License-Identifier: Apache-2.0
"""The addresses in DNS responses: reads them, and drops some. Without I/O."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv6Address

import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA

from ztunnel.dns.message import HEADER, error_response

MAX_RECORDS = 64  # of a response that are read; resolvers return fewer addresses
V4_MAPPED = b"\0" * 10 + b"\xff\xff"  # RFC 4291, 2.5.5.2
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_A, _AAAA, _IN = int(dns.rdatatype.A), int(dns.rdatatype.AAAA), int(dns.rdataclass.IN)


def answer_addresses(wire: bytes) -> list[bytes]:
    """Return the addresses in the answer section, IPv4 as v4-mapped IPv6, 16 bytes each.

    Malformed data ends the list.
    """
    if len(wire) < HEADER.size:
        return []
    *_, questions, answers, _, _ = HEADER.unpack_from(wire)
    found: list[bytes] = []
    at = HEADER.size
    for _ in range(min(questions, 1)):
        at = _end_of_name(wire, at) + 4
    for _ in range(min(answers, MAX_RECORDS) if questions <= 1 else 0):
        at = _end_of_name(wire, at)
        if at + _RECORD.size > len(wire):
            break
        rdtype, rdclass, _, size = _RECORD.unpack_from(wire, at)
        at += _RECORD.size
        data = wire[at : at + size]
        at += size
        if rdclass == _IN and rdtype == _A and len(data) == 4:
            found.append(V4_MAPPED + data)
        elif rdclass == _IN and rdtype == _AAAA and len(data) == 16:
            found.append(data)
    return found


def without_addresses(wire: bytes, is_dropped: Callable[[str], bool]) -> tuple[bytes | None, int]:
    """Return the response without the addresses to drop, and their number.

    Addresses in all sections count. A response without any to drop is returned unchanged; one that
    cannot be parsed becomes SERVFAIL, and None if even its header is malformed.
    """
    try:
        reply = dns.message.from_wire(wire)
        dropped = 0
        for number in range(len(reply.sections)):
            reply.sections[number], count = _kept(reply.sections[number], is_dropped)
            dropped += count
        return (reply.to_wire() if dropped else wire), dropped
    except Exception:  # hostile input raises more exception types than the parser documents
        return _failure(wire), 0


def _kept(
    section: list[dns.rrset.RRset], is_dropped: Callable[[str], bool]
) -> tuple[list[dns.rrset.RRset], int]:
    """The section without the addresses to drop, and their number."""
    kept, dropped = [], 0
    for rrset in section:
        records = [each for each in rrset if not _is_unwanted(each, is_dropped)]
        dropped += len(rrset) - len(records)
        if len(records) == len(rrset):
            kept.append(rrset)
        elif records:
            kept.append(dns.rrset.from_rdata_list(rrset.name, rrset.ttl, records))
    return kept, dropped


def _is_unwanted(record: dns.rdata.Rdata, is_dropped: Callable[[str], bool]) -> bool:
    if isinstance(record, A | AAAA):
        return is_dropped(_canonical(record.address))
    return record.rdtype in (dns.rdatatype.SVCB, dns.rdatatype.HTTPS)  # have addresses as hints


def _canonical(text: str) -> str:
    if ":" not in text:
        return text
    address = IPv6Address(text)
    return str(address.ipv4_mapped or address)


def _failure(wire: bytes) -> bytes | None:
    """SERVFAIL for the question of a response."""
    if len(wire) < HEADER.size:
        return None
    query = bytearray(wire)
    query[2] &= 0x7F  # as in the query
    return error_response(bytes(query), dns.rcode.SERVFAIL)


def _end_of_name(wire: bytes, at: int) -> int:
    """The offset after a name, which may end with a compression pointer."""
    while at < len(wire):
        length = wire[at]
        if length >= 0xC0:
            return at + 2
        at += length + 1
        if not length:
            break
    return at
