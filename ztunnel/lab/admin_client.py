# SPDX-License-Identifier: Apache-2.0
"""Client of the admin API of a node's agent: HTTP over the agent's unix socket."""

from __future__ import annotations

import http.client
import json
from typing import Any

from ztunnel.ipc.unix_http import UnixHttpConnection
from ztunnel.lab.names import LabNames

_TIMEOUT_S = 2.0


def admin_get(names: LabNames, node: str, path: str) -> tuple[int, Any]:
    """GET `path`: the HTTP status and the decoded JSON, or (0, None) if the agent is unreachable.

    The JSON is None for a response of another content type.
    """
    connection = UnixHttpConnection(names.run_dir(node) / "admin.sock", _TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        is_json = "json" in response.headers.get("content-type", "")
        return response.status, json.loads(body) if is_json else None
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None
    finally:
        connection.close()
