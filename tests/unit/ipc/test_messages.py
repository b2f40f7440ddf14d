# SPDX-License-Identifier: Apache-2.0
"""The wire format of the agent link: an upgrade runs two versions of it side by side."""

from __future__ import annotations

import typing

import msgspec

from ztunnel.ipc import messages

TO_AGENT = {
    "Hello": "hello",
    "PodReady": "pod_ready",
    "SocketRequest": "socket_request",
    "UdpSocketRequest": "udp_socket_request",
    "ConnectUdpUnsupported": "connect_udp_unsupported",
    "SameNodeAllowed": "same_node_allowed",
    "IntrospectionReply": "introspection_reply",
    "CounterReport": "counter_report",
    "Draining": "draining",
}
TO_WORKER = {
    "MeshDelta": "mesh_delta",
    "Certificate": "certificate",
    "CertificateRemoved": "certificate_removed",
    "PodAdded": "pod_added",
    "PodRemoved": "pod_removed",
    "Sockets": "sockets",
    "UdpSockets": "udp_sockets",
    "IntrospectionRequest": "introspection_request",
    "CounterAck": "counter_ack",
    "LogConfig": "log_config",
}
PARTS = {  # structs inside of messages: not sent by themselves
    "AccessRule",
    "DnsCounts",
    "HostGroup",
    "HeldListeners",
    "LogDropCounts",
    "SeriesCounts",
    "UdpDropCounts",
}


def tags(union: object) -> dict[str, object]:
    return {message.__name__: message.__struct_config__.tag for message in typing.get_args(union)}


def test_tags_of_messages_to_the_agent_never_change() -> None:
    assert tags(messages.ToAgent) == TO_AGENT


def test_tags_of_messages_to_the_worker_never_change() -> None:
    assert tags(messages.ToWorker) == TO_WORKER


def test_every_struct_is_a_tagged_message_or_a_part_of_one() -> None:
    structs = {
        name: struct
        for name, struct in vars(messages).items()
        if isinstance(struct, type)
        and issubclass(struct, msgspec.Struct)
        and struct.__module__ == messages.__name__
    }
    assert structs.keys() == TO_AGENT.keys() | TO_WORKER.keys() | PARTS
    for name in TO_AGENT.keys() | TO_WORKER.keys():
        assert structs[name].__struct_config__.tag_field == "type", name


def test_the_tag_is_the_field_type_of_a_packet() -> None:
    packet = msgspec.msgpack.encode(messages.CounterAck(7))
    assert msgspec.msgpack.decode(packet) == {"type": "counter_ack", "seq": 7}


def test_fields_of_a_newer_version_are_ignored() -> None:
    packet = msgspec.msgpack.encode({"type": "pod_ready", "pod_uid": "u", "added_later": 1})
    decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(messages.ToAgent)
    assert decoder.decode(packet) == messages.PodReady("u")
