# SPDX-License-Identifier: Apache-2.0
"""The messages of the gateway process are a wire format, like those of workers."""

from __future__ import annotations

import typing

import msgspec
import pytest

from ztunnel.ipc import gateway_messages as messages

FROM_GATEWAY = {
    "GatewayHello": "gateway_hello",
    "SocketRequest": "socket_request",
    "GatewayRejected": "gateway_rejected",
    "GatewayReply": "gateway_reply",
}
TO_GATEWAY = {
    "MeshDelta": "mesh_delta",
    "L7Delta": "l7_delta",
    "GatewaySettings": "gateway_settings",
    "GatewayPodAdded": "gateway_pod_added",
    "PodRemoved": "pod_removed",
    "Sockets": "sockets",
    "GatewayQuery": "gateway_query",
    "LogConfig": "log_config",
}


def tags(union: object) -> dict[str, object]:
    return {message.__name__: message.__struct_config__.tag for message in typing.get_args(union)}


def test_tags_never_change() -> None:
    assert tags(messages.FromGateway) == FROM_GATEWAY
    assert tags(messages.ToGateway) == TO_GATEWAY


@pytest.mark.parametrize(
    "value",
    [
        {"type": "gateway_reply", "id": -1},
        {"type": "gateway_reply", "id": 1, "data": b"x" * (messages.MAX_REPLY_BYTES + 1)},
        {"type": "gateway_rejected", "pod_uid": "u", "resources": [["t", "n", "m" * 2000]]},
        {"type": "gateway_rejected", "pod_uid": "u", "resources": [["t", "n", "m"]] * 65},
        {"type": "gateway_hello", "version": "1", "pid": 1, "pods": [{"pod_uid": "u"}]},
        {"type": "pod_ready", "pod_uid": "u"},
    ],
)
def test_values_beyond_the_bounds_are_rejected(value: object) -> None:
    decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(messages.FromGateway)
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(msgspec.msgpack.encode(value))


def test_key_of_an_object_equals_that_of_the_view() -> None:
    assert messages.L7ObjectBody("HTTPRoute", "shop", "web", b"").key == "HTTPRoute shop/web"
    assert messages.L7ObjectBody("GatewayClass", "", "istio", b"").key == "GatewayClass istio"
