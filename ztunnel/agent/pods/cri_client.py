# SPDX-License-Identifier: Apache-2.0
"""Queries the container runtime for pods by CRI, its interface for the kubelet.

    ListPodSandbox(state=READY)          -> pod uid and sandbox id of each
    PodSandboxStatus(id, verbose=True)   -> `info`: the runtime's own JSON, with pid and namespaces

The client calls only these two methods. The JSON is not specified; containerd and CRI-O agree on
`pid` and `runtimeSpec`, and CRI-O omits `pid` if the pod has no sandbox process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ztunnel.agent.pods.cri_sandbox import CriError, Sandbox, namespace_of

CALL_TIMEOUT_S = 2.0
MAX_RESPONSE_BYTES = 16 << 20  # the kubelet's limit
_SERVICE = "/runtime.v1.RuntimeService"
_READY = 0  # SANDBOX_READY

# The fields in use of k8s.io/cri-api's api.proto: number, and type (a message or a scalar); `*` for
# repeated. A map is a repeated pair on the wire.
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "Pair": {"key": (1, "string"), "value": (2, "string")},
    "State": {"state": (1, "int")},
    "Filter": {"state": (2, "State")},
    "ListPodSandboxRequest": {"filter": (1, "Filter")},
    "Metadata": {"uid": (2, "string")},
    "Item": {"id": (1, "string"), "metadata": (2, "Metadata"), "state": (3, "int")},
    "ListPodSandboxResponse": {"items": (1, "*Item")},
    "PodSandboxStatusRequest": {"pod_sandbox_id": (1, "string"), "verbose": (2, "bool")},
    "PodSandboxStatusResponse": {"info": (2, "*Pair")},
}


class CriClient:
    """A connection to one runtime, which reconnects when it is lost. Use from one thread."""

    def __init__(self, socket: Path) -> None:
        options = (
            (
                "grpc.default_authority",
                "localhost",
            ),  # servers reject the default, a path
            ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_reconnect_backoff_ms", 5000),
        )
        self._channel = grpc.insecure_channel(f"unix://{socket.absolute()}", options)
        self._list = self._method("ListPodSandbox")
        self._status = self._method("PodSandboxStatus")

    def sandboxes(self) -> dict[str, str]:
        """The sandbox id of each running pod, by pod uid. Raises CriError."""
        request = {"filter": {"state": {"state": _READY}}}
        response = _call(self._list, _message("ListPodSandboxRequest", request))
        return {
            item.metadata.uid: item.id
            for item in response.items
            if item.state == _READY and item.metadata.uid and item.id
        }

    def sandbox(self, uid: str, sandbox_id: str) -> Sandbox:
        """The namespace and the process of a sandbox. Raises CriError, also if it is gone."""
        request = {"pod_sandbox_id": sandbox_id, "verbose": True}
        response = _call(self._status, _message("PodSandboxStatusRequest", request))
        info = next((pair.value for pair in response.info if pair.key == "info"), "")
        netns, pid = namespace_of(info)
        return Sandbox(sandbox_id, uid, netns, pid)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _method(self, name: str) -> Any:
        return self._channel.unary_unary(
            f"{_SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_CLASSES[f"{name}Response"].FromString,
        )


def _call(method: Any, request: Any) -> Any:
    try:
        return method(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        raise CriError(f"{error.code().name.lower()}: {error.details()}") from error


def _message(name: str, fields: Mapping[str, Any]) -> Any:
    return _CLASSES[name](**fields)


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="ztunnel/cri.proto", package="ztunnel.cri", syntax="proto3"
    )
    scalar = {"string": 9, "bool": 8, "int": 3}  # FieldDescriptorProto.Type
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            bare = kind.removeprefix("*")
            added = message.field.add(name=field, number=number, label=3 if kind != bare else 1)
            added.type = scalar.get(bare, 11)
            if bare not in scalar:
                added.type_name = f".ztunnel.cri.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ztunnel.cri.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()
