# SPDX-License-Identifier: Apache-2.0
"""Send bytes over QUIC and print whether the echo matches. Runs in a pod.

usage: quic_client.py HOST PORT BYTES
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.quic.configuration import QuicConfiguration


async def main() -> None:
    host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    configuration = QuicConfiguration(alpn_protocols=["echo"], verify_mode=ssl.CERT_NONE)
    payload = hashlib.shake_128(b"quic").digest(size)
    async with connect(host, port, configuration=configuration) as connection:
        reader, writer = await connection.create_stream()
        writer.write(payload)
        writer.write_eof()
        came = await asyncio.wait_for(reader.read(), 30)
    print(json.dumps({"same": came == payload}))


if __name__ == "__main__":
    asyncio.run(main())
