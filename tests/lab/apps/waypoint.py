# SPDX-License-Identifier: Apache-2.0
"""Stands for a waypoint's Envoy: shows the PROXY header that the node sends, then echoes.

Each connection to 127.0.0.1:15088 gets a line of JSON (source, destination, TLVs in hexadecimal
and as text), and then its own bytes.
"""

from __future__ import annotations

import json
import socketserver
from io import BufferedReader
from typing import cast

from ztunnel.mesh.headers.proxy_protocol import parse_proxy_header
from ztunnel.mesh.ports import WAYPOINT


class Connection(socketserver.StreamRequestHandler):
    """Shows the header and echoes the rest."""

    def handle(self) -> None:
        data = self.rfile.read(16)
        data += self.rfile.read(int.from_bytes(data[14:16], "big"))
        header = parse_proxy_header(data)
        assert header is not None
        found = {
            "source": str(header.source),
            "destination": str(header.destination),
            "tlvs": {f"{kind:x}": value.decode() for kind, value in header.tlvs},
        }
        self.wfile.write(json.dumps(found).encode() + b"\n")
        stream = cast("BufferedReader", self.rfile)  # may hold bytes that follow the header
        while data := stream.read1(65536):
            self.wfile.write(data)


class Server(socketserver.ThreadingTCPServer):
    """Envoy listens at this address only."""

    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("127.0.0.1", WAYPOINT), Connection) as server:
        print("ready", flush=True)
        server.serve_forever()
