# SPDX-License-Identifier: Apache-2.0
"""Addresses in DNS responses: read from any input, and dropped without a trace."""

from __future__ import annotations

from ipaddress import IPv6Address

import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.dns.addresses import MAX_RECORDS, answer_addresses, without_addresses
from ztunnel.mesh.address import is_special, translated


def texts(wire: bytes) -> list[str]:
    found = [IPv6Address(each) for each in answer_addresses(wire)]
    return [str(each.ipv4_mapped or each) for each in found]


def response(*records: tuple[str, str, str], name: str = "a.example.com") -> bytes:
    """A response whose answers are (name, type, text)."""
    reply = dns.message.make_response(dns.message.make_query(name, "A"))
    for owner, kind, text in records:
        reply.answer.append(dns.rrset.from_text(owner + ".", 60, "IN", kind, text))
    return reply.to_wire()


def test_addresses_of_both_families_are_read_behind_aliases() -> None:
    wire = response(
        ("a.example.com", "CNAME", "b.example.net."),
        ("b.example.net", "A", "192.0.2.1"),
        ("b.example.net", "AAAA", "2001:db8::1"),
        ("b.example.net", "AAAA", "::ffff:192.0.2.9"),
        ("b.example.net", "TXT", '"10.0.0.1"'),
    )
    assert set(texts(wire)) == {"192.0.2.1", "2001:db8::1", "192.0.2.9"}


def test_number_of_records_is_bounded() -> None:
    many = response(*(("a.example.com", "A", f"10.0.{i // 250}.{i % 250}") for i in range(300)))
    assert len(answer_addresses(many)) == MAX_RECORDS


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    answer_addresses(data)
    answer_addresses(b"\0\1\x81\x80\0\1\0\xff\0\0\0\0" + data)


@given(st.binary(max_size=200))
def test_what_cannot_be_parsed_is_not_passed_on(data: bytes) -> None:
    wire = b"\0\1\x81\x80\0\1\0\2\0\0\0\0" + data
    found, dropped = without_addresses(wire, lambda _: True)
    if found is not None:
        assert dns.message.from_wire(found).rcode() == dns.rcode.SERVFAIL or not dropped
        assert answer_addresses(found) == []


def test_response_without_such_addresses_is_unchanged() -> None:
    wire = response(("a.example.com", "A", "192.0.2.1"))
    assert without_addresses(wire, lambda ip: ip == "192.0.2.2") == (wire, 0)


def test_some_addresses_are_dropped() -> None:
    wire = response(("a.example.com", "A", "192.0.2.1"), ("a.example.com", "A", "10.0.0.1"))
    found, dropped = without_addresses(wire, lambda ip: ip.startswith("10."))
    assert found is not None
    assert (texts(found), dropped) == (["192.0.2.1"], 1)


def test_response_without_remaining_addresses_has_no_data() -> None:
    wire = response(
        ("a.example.com", "AAAA", "::ffff:10.0.0.1"),
        ("a.example.com", "HTTPS", "1 . ipv4hint=10.0.0.1"),
    )
    found, dropped = without_addresses(wire, lambda ip: ip.startswith("10."))
    assert found is not None
    reply = dns.message.from_wire(found)
    assert (reply.answer, reply.rcode(), dropped) == ([], dns.rcode.NOERROR, 2)


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "240.240.0.1", "::1", "::"),
        *("fe80::1", "ff02::1", "2001:2::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("2002:7f00:1::1", "::ffff:127.0.0.1"),
        *("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    ],
)
def test_special_addresses(ip: str) -> None:
    assert is_special(ip)


@pytest.mark.parametrize(
    "ip", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "64:ff9b::c000:201", "fd00::1"]
)
def test_addresses_that_external_hosts_may_have(ip: str) -> None:
    assert not is_special(ip)


@pytest.mark.parametrize(
    ("ip", "reached"),
    [
        ("10.96.0.1", "10.96.0.1"),
        ("fd00::1", "fd00::1"),
        ("::ffff:10.96.0.1", "10.96.0.1"),
        ("64:ff9b::a60:1", "10.96.0.1"),
        ("2002:a60:1::1", "10.96.0.1"),
    ],
)
def test_translated_addresses_lead_to_ipv4(ip: str, reached: str) -> None:
    assert translated(ip) == reached
