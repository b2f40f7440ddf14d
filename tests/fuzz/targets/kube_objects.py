# SPDX-License-Identifier: Apache-2.0
"""Lists and watch events of an API server, from bytes to policies.

Bytes are a page or event, or a DecodeError. An object that both the list and the watch contain is
the same object; the view accepts any; another object of the page is never affected.
"""

from __future__ import annotations

import random

import msgspec

from tests.fuzz.target import Target
from ztunnel.kube.client.object_decoder import EventType, Page, PartialDecoder
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.policy.model import Policy

KINDS = ("AuthorizationPolicy", "PeerAuthentication", "ServiceEntry", "Pod", "EndpointSlice")
_OTHER = b'{"metadata":{"name":"other","namespace":"shop"}}'
_decoders = [PartialDecoder(kind) for kind in KINDS]
_encoder = msgspec.msgpack.Encoder()
_policies: msgspec.msgpack.Decoder[Policy] = msgspec.msgpack.Decoder(Policy)


def check(octets: bytes) -> None:
    for kind, decoder in zip(KINDS, _decoders, strict=True):
        _check_kind(kind, decoder, octets)


def _check_kind(kind: str, decoder: PartialDecoder, octets: bytes) -> None:
    view = ClusterView("cluster.local", "Kubernetes")
    for text in (octets, b'{"type":"ADDED","object":' + octets + b"}"):
        try:
            event = decoder.event(text)
        except msgspec.DecodeError:
            continue
        if event.type is EventType.UPSERT:
            view.upsert(event.object)
    for text in (octets, b'{"metadata":{},"items":[' + octets + b"," + _OTHER + b"]}"):
        page = _page(decoder, text)
        for item in page.items if page else ():
            view.upsert(item)
        if text is not octets and _is_json(octets):
            assert page is not None
            assert page.items[-1]["metadata"]["name"] == "other"
            assert len(page.items) + page.unidentified == 2
    for policy in view.drain().policies:
        assert _policies.decode(_encoder.encode(policy)) == policy
        assert kind.endswith(("Policy", "Authentication"))
    view.snapshot()


def _page(decoder: PartialDecoder, text: bytes) -> Page | None:
    try:
        return decoder.page(text)
    except msgspec.DecodeError:
        return None


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return False
    return True


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    """Replace the text between two structural characters by an extreme value."""
    marks = [at for at, octet in enumerate(octets) if octet in b':,[]{}"']
    if len(marks) < 2:
        return octets
    begin, end = sorted(chance.sample(marks, 2))
    depth = chance.choice((2, 70, 900, 1100))
    odd = (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"0" + b"}" * depth, *_ODD)
    return octets[: begin + 1] + chance.choice(odd) + octets[end:]


_ODD = (
    *(b"null", b"-0", b"1e400", b"1" * 5000, b'"\\ud800"', b'"\xff"', b'"\\u0000"', b"{}", b"[]"),
    *(b'""', b'{"a":1,"a":2}', b'"' + b"x" * 500 + b'"', b'"\\"', b"true", b" \n\t"),
)
_POLICY = b"""{"kind":"AuthorizationPolicy","metadata":{"name":"p","namespace":"shop",
"resourceVersion":"7","generation":2,"annotations":{"istio.io/dry-run":"false"}},"spec":{
"selector":{"matchLabels":{"app":"web"}},"action":"DENY","rules":[{"from":[{"source":
{"namespaces":["x"]}}]}]},"status":{"conditions":[]}}"""
_POD = b"""{"metadata":{"name":"a","namespace":"shop","uid":"u","labels":{"app":"web"},
"managedFields":[{"f":{}}]},"spec":{"nodeName":"n1"},"status":{"podIPs":[{"ip":"10.0.0.1"}]}}"""
_SLICE = b"""{"metadata":{"name":"s","namespace":"shop",
"labels":{"kubernetes.io/service-name":"s"}},
"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"port":80}]}"""
_LIST = b'{"metadata":{"resourceVersion":"9","continue":""},"items":[' + _POLICY + b"," + _POD
_EVENT = b'{"type":"MODIFIED","object":' + _POLICY + b"}"

TARGET = Target(
    check,
    seeds=(_POLICY, _POD, _SLICE, _LIST + b"]}", _EVENT),
    mutate=_mutate,
    words=(b'"metadata":', b'"name":', b'"items":', b'"type":', b"[[[[", b"{{", b"\\", b'"', *_ODD),
    max_len=8000,
)
