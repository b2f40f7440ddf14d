# SPDX-License-Identifier: Apache-2.0
"""Header operations of a VirtualService."""

from __future__ import annotations

import re

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.istio.values import header_name
from ztunnel.l7.config import Json

_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]{0,4096}")
_HOST = ("host", ":authority")


def header_fields(operations: Fields) -> Json:
    """Return fields of a route or weighted cluster. Raises TranslateError."""
    operations.allow_only("request", "response")
    found: Json = {}
    for side in ("request", "response"):
        part = operations.mapping(side)
        part.allow_only("set", "add", "remove")
        added = _values(part, "set", "OVERWRITE_IF_EXISTS_OR_ADD", side)
        added += _values(part, "add", "APPEND_IF_EXISTS_OR_ADD", side)
        if added:
            found[f"{side}_headers_to_add"] = added
        if removed := part.strings("remove"):
            names = [
                header_name(Fields({"n": name}, part.path("remove.")), "n") for name in removed
            ]
            if any(name.startswith(":") or name == "host" or not name for name in names):
                raise part.error("remove", "names of headers other than host")
            found[f"{side}_headers_to_remove"] = names
    return found


def host_rewrite(operations: Fields) -> Json:
    """Return the field that sets the host: Envoy does not treat it as a header."""
    headers = operations.mapping("request").labels("set")
    hosts = [value for name, value in headers.items() if name.lower() in _HOST]
    return {"host_rewrite_literal": hosts[0]} if hosts and hosts[0] else {}


def _values(part: Fields, name: str, action: str, side: str) -> list[Json]:
    found = []
    for key, value in part.labels(name).items():
        header = header_name(Fields({"name": key}, part.path(f"{name}.")), "name")
        if side == "request" and header in _HOST and name == "set":
            continue
        if not header or header.startswith(":") or header == "host":
            raise part.error(name, "headers; of requests, the host can be set")
        if not _VALUE.fullmatch(value):
            raise part.error(name, "values of headers")
        text = value.replace("%", "%%")  # no command operators
        entry = {"header": {"key": header, "value": text}, "append_action": action}
        found.append(entry | {"keep_empty_value": True})
    return found
