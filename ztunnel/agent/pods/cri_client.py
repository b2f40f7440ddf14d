# SPDX-License-Identifier: Apache-2.0
"""Ask the container runtime where pods are: CRI, the interface it serves the kubelet.

    ListPodSandbox(state=READY)          -> pod uid and sandbox id of each
    PodSandboxStatus(id, verbose=True)   -> `info`: the runtime's own JSON, with pid and namespaces

Only these two are ever called, though the socket would run containers as well. What the JSON says
is not specified; containerd and CRI-O agree on `pid` and `runtimeSpec`, and CRI-O leaves `pid` out
when a pod has no process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ztunnel.agent.pods.cri_sandbox import CriError, Sandbox, namespace_of

TIMEOUT = 2.0  # seconds for one call
MOST_BYTES = 16 << 20  # of one answer; what the kubelet takes
_SERVICE = "/runtime.v1.RuntimeService"
_READY = 0  # SANDBOX_READY

# The fields that are read or written, of k8s.io/cri-api's api.proto: number, and the type of a
# message or `string`; `*` for repeated. A map is a repeated pair on the wire.
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


class Runtime:
    """A connection to one runtime, dialled anew whenever it is lost. Use from one thread."""

    def __init__(self, socket: Path) -> None:
        options = (
            ("grpc.default_authority", "localhost"),  # a path is none, and servers refuse it
            ("grpc.max_receive_message_length", MOST_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_reconnect_backoff_ms", 5000),
        )
        self._channel = grpc.insecure_channel(f"unix://{socket.absolute()}", options)
        self._list = self._method("ListPodSandbox")
        self._status = self._method("PodSandboxStatus")

    def sandboxes(self) -> dict[str, str]:
        """Sandbox id by pod uid of all pods that run. Raises CriError."""
        request = {"filter": {"state": {"state": _READY}}}
        answer = _call(self._list, _message("ListPodSandboxRequest", request))
        return {
            item.metadata.uid: item.id
            for item in answer.items
            if item.state == _READY and item.metadata.uid and item.id
        }

    def sandbox(self, uid: str, sandbox_id: str) -> Sandbox:
        """Where a pod is. Raises CriError, also when it ended meanwhile."""
        request = {"pod_sandbox_id": sandbox_id, "verbose": True}
        answer = _call(self._status, _message("PodSandboxStatusRequest", request))
        info = next((pair.value for pair in answer.info if pair.key == "info"), "")
        netns, pid = namespace_of(info)
        return Sandbox(sandbox_id, uid, netns, pid)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _method(self, name: str) -> Any:
        return self._channel.unary_unary(
            f"{_SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_CLASSES[f"{name}Response"].FromString,
        )


def _call(method: Any, request: Any) -> Any:
    try:
        return method(request, timeout=TIMEOUT)
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
            made = message.field.add(name=field, number=number, label=3 if kind != bare else 1)
            made.type = scalar.get(bare, 11)
            if bare not in scalar:
                made.type_name = f".ztunnel.cri.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ztunnel.cri.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()
