# SPDX-License-Identifier: Apache-2.0
"""DNS messages: answers, forwarding, and the handling of hostile input."""

from __future__ import annotations

import random

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.update
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.dns import message
from ztunnel.dns.message import Question
from ztunnel.mesh.dns_names import DnsAnswer, SrvTarget

WEB = "web.shop.svc.cluster.local"
ENTRIES = {
    WEB: DnsAnswer("cluster.local", addresses=("10.96.0.7", "fd00:96::7")),
    "v4.shop.svc.cluster.local": DnsAnswer("cluster.local", addresses=("10.96.0.8",)),
    "gone.web.shop.svc.cluster.local": DnsAnswer("cluster.local", exists=False),
    "alias.example": DnsAnswer("cluster.local", alias=WEB, addresses=("10.96.0.7",)),
    "big.example": DnsAnswer(
        "big.example", addresses=tuple(f"10.1.{n // 250}.{n % 250}" for n in range(2000))
    ),
    "_http._tcp.web.shop.svc.cluster.local": DnsAnswer(
        "cluster.local", targets=(SrvTarget(80, WEB, ("10.96.0.7", "fd00:96::7")),)
    ),
}


def _ask(
    name: str, rdtype: str = "A", *, limit: int = 65535, **query: object
) -> dns.message.Message | None:
    asked = dns.message.make_query(name, rdtype, **query)  # type: ignore[arg-type]
    return _answered(asked.to_wire(), limit)


def _answered(wire: bytes, limit: int = 65535) -> dns.message.Message | None:
    reply = message.answer(wire, ENTRIES.get, limit=limit, shuffle=random.Random(7))
    return None if reply is None else dns.message.from_wire(reply)


def _texts(reply: dns.message.Message | None) -> list[str]:
    assert reply is not None
    return [f"{rrset.name} {rrset.ttl} {rdata}" for rrset in reply.answer for rdata in rrset]


@pytest.mark.parametrize(
    ("rdtype", "data"), [("A", "10.96.0.7"), ("AAAA", "fd00:96::7")], ids=["A", "AAAA"]
)
def test_answers_contain_the_queried_family_with_a_ttl_of_thirty_seconds(
    rdtype: str, data: str
) -> None:
    reply = _ask(WEB, rdtype)
    assert _texts(reply) == [f"{WEB}. 30 {data}"]
    assert reply is not None
    assert reply.flags & dns.flags.AA
    assert reply.flags & dns.flags.RA
    assert reply.rcode() == dns.rcode.NOERROR


def test_answer_repeats_the_case_of_the_queried_name() -> None:
    reply = _ask("WeB.sHop.svc.cluster.LOCAL")
    assert _texts(reply) == ["WeB.sHop.svc.cluster.LOCAL. 30 10.96.0.7"]


@pytest.mark.parametrize("rdtype", ["AAAA", "MX", "TXT", "TYPE65", "ANY"])
def test_missing_record_type_is_answered_with_nodata(rdtype: str) -> None:
    reply = _ask("v4.shop.svc.cluster.local", rdtype)
    assert reply is not None
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert [(soa.rdtype, soa.ttl) for soa in reply.authority] == [(dns.rdatatype.SOA, 30)]
    assert reply.authority[0][0].minimum == 30


def test_unknown_name_is_answered_with_nxdomain() -> None:
    reply = _ask("gone.web.shop.svc.cluster.local")
    assert reply is not None
    assert (reply.rcode(), reply.answer) == (dns.rcode.NXDOMAIN, [])
    assert reply.authority[0].name.to_text() == "cluster.local."


def test_alias_is_answered_with_cname_and_target() -> None:
    assert _texts(_ask("alias.example")) == [
        f"alias.example. 30 {WEB}.",
        f"{WEB}. 30 10.96.0.7",
    ]
    reply = _ask("alias.example", "AAAA")
    assert _texts(reply) == [f"alias.example. 30 {WEB}."]
    assert reply is not None
    assert reply.authority


def test_srv_answer_includes_host_addresses() -> None:
    reply = _ask("_http._tcp.web.shop.svc.cluster.local", "SRV")
    assert reply is not None
    assert [rdata.to_text() for rdata in reply.answer[0]] == [f"0 100 80 {WEB}."]
    assert {rrset.rdtype for rrset in reply.additional} == {dns.rdatatype.A, dns.rdatatype.AAAA}


def test_invalid_host_name_is_answered_with_servfail() -> None:
    entry = DnsAnswer(
        "cluster.local", targets=(SrvTarget(80, f"{'x' * 70}.{WEB}", ("10.96.0.7",)),)
    )
    wire = dns.message.make_query(WEB, "SRV").to_wire()
    raw = message.answer(wire, lambda _: entry, limit=512, shuffle=random.Random())
    assert raw is not None
    assert dns.message.from_wire(raw).rcode() == dns.rcode.SERVFAIL


def test_oversized_response_is_truncated_with_tc() -> None:
    wire = dns.message.make_query("big.example", "A").to_wire()
    assert message.udp_limit(wire) == 512
    reply = _answered(wire, message.udp_limit(wire))
    assert reply is not None
    assert reply.flags & dns.flags.TC
    assert reply.answer == []
    whole = _answered(wire)
    assert whole is not None
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == message.MAX_ANSWER_RECORDS


def test_addresses_are_shuffled() -> None:
    wire = dns.message.make_query("big.example", "A").to_wire()
    firsts = set()
    for seed in range(5):
        raw = message.answer(wire, ENTRIES.get, limit=65535, shuffle=random.Random(seed))
        assert raw is not None
        firsts.add(dns.message.from_wire(raw).answer[0][0].to_text())
    assert len(firsts) > 1


def test_default_response_limit_is_the_clients_udp_payload_size() -> None:
    for query, limit in (({}, 512), ({"use_edns": 0, "payload": 1232}, 1232)):
        wire = dns.message.make_query("big.example", "A", **query).to_wire()  # type: ignore[arg-type]
        raw = message.answer(wire, ENTRIES.get, shuffle=random.Random(1))
        assert raw is not None
        assert len(raw) <= limit
        assert dns.message.from_wire(raw).flags & dns.flags.TC


@pytest.mark.parametrize(("payload", "limit"), [(400, 512), (800, 800), (4096, 4096)])
def test_edns_payload_size_limits_the_response(payload: int, limit: int) -> None:
    wire = dns.message.make_query(WEB, "A", use_edns=0, payload=payload).to_wire()
    assert message.udp_limit(wire) == limit
    reply = _answered(wire)
    assert reply is not None
    assert (reply.edns, reply.payload) == (0, message.EDNS_PAYLOAD_BYTES)


def test_response_has_no_edns_if_the_query_has_none() -> None:
    reply = _ask(WEB)
    assert reply is not None
    assert reply.edns == -1


def test_unknown_edns_version_is_answered_with_badvers() -> None:
    reply = _ask(WEB, use_edns=1)
    assert reply is not None
    assert reply.rcode() == dns.rcode.BADVERS


@pytest.mark.parametrize(
    "wire",
    [
        dns.message.make_query("example.org", "A").to_wire(),
        dns.message.make_query(WEB, "A", rdclass="CH").to_wire(),
        dns.update.UpdateMessage("cluster.local").to_wire(),
        dns.message.Message(id=4).to_wire(),
    ],
    ids=["other name", "other class", "update", "no question"],
)
def test_query_outside_the_mesh_is_not_answered_but_forwardable(wire: bytes) -> None:
    assert _answered(wire) is None
    assert isinstance(message.read_question(wire), Question)


def test_a_response_is_neither_answered_nor_forwarded() -> None:
    wire = dns.message.make_response(dns.message.make_query(WEB, "A")).to_wire()
    assert message.read_question(wire) is None
    assert _answered(wire) is None
    assert message.error_response(wire, dns.rcode.SERVFAIL) is None


def test_trailing_garbage_is_answered_with_formerr() -> None:
    wire = dns.message.make_query(WEB, "A").to_wire()
    reply = message.answer(
        wire[:10] + b"\0\1" + wire[12:] + b"\xff\xff",
        ENTRIES.get,
        limit=512,
        shuffle=random.Random(),
    )
    assert reply is not None
    assert dns.message.from_wire(reply).rcode() == dns.rcode.FORMERR


def test_error_response_repeats_the_question() -> None:
    query = dns.message.make_query("example.org", "MX")
    raw = message.error_response(query.to_wire(), dns.rcode.SERVFAIL)
    assert raw is not None
    reply = dns.message.from_wire(raw)
    assert query.is_response(reply)
    assert reply.rcode() == dns.rcode.SERVFAIL


def _question_of(query: dns.message.Message) -> Question:
    question = message.read_question(query.to_wire())
    assert question is not None
    return question


def test_response_must_match_id_and_question() -> None:
    query = dns.message.make_query("example.org", "A")
    question = _question_of(query)
    good = dns.message.make_response(query).to_wire()
    number = query.id
    assert message.is_response_to(question, number, good)
    upper = dns.message.make_query("EXAMPLE.org", "A", id=number)
    assert message.is_response_to(question, number, dns.message.make_response(upper).to_wire())
    assert not message.is_response_to(question, number ^ 1, good)
    assert not message.is_response_to(question, number, query.to_wire())
    other = dns.message.make_response(dns.message.make_query("example.net", "A", id=number))
    assert not message.is_response_to(question, number, other.to_wire())
    assert not message.is_response_to(question, number, good[:8])
    empty = dns.message.Message(id=number)
    empty.flags |= dns.flags.QR
    assert not message.is_response_to(question, number, empty.to_wire())
    empty.set_rcode(dns.rcode.FORMERR)
    assert message.is_response_to(question, number, empty.to_wire())


def _hostile() -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, and valid queries with a few bytes changed."""
    wires = [
        dns.message.make_query(name, rdtype, use_edns=edns, payload=payload).to_wire()
        for name in ENTRIES
        for rdtype in ("A", "SRV")
        for edns, payload in ((False, 0), (0, 1232))
    ]

    def spoilt(wire: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
        raw = bytearray(wire)
        for at, value in changes:
            raw[at % len(raw)] = value
        return bytes(raw[: len(raw) - cut])

    changes = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)
    return st.one_of(
        st.binary(max_size=600),
        st.builds(spoilt, st.sampled_from(wires), changes, st.integers(0, 12)),
    )


@settings(max_examples=3000, deadline=None)
@given(_hostile(), st.sampled_from([512, 1232, 65535]))
def test_hostile_input_never_raises_and_responses_are_bounded(wire: bytes, limit: int) -> None:
    question = message.read_question(wire)
    reply = message.answer(wire, ENTRIES.get, limit=limit, shuffle=random.Random(1))
    assert question is not None or reply is None
    if reply is not None:
        assert 12 <= len(reply) <= max(limit, 512)
        assert reply[:2] == wire[:2]
        assert reply[2] & 0x80
    assert 512 <= message.udp_limit(wire) <= 65535
    failed = message.error_response(wire, dns.rcode.SERVFAIL)
    assert failed is None or len(failed) <= len(wire)
    if question is not None:
        message.is_response_to(question, question.id, wire)
