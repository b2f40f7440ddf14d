# SPDX-License-Identifier: Apache-2.0
"""A QUIC server that echoes each stream, with a self-signed certificate. Runs in a pod.

usage: quic_server.py PORT
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec


def certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "echo")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    return made.sign(key, hashes.SHA256()), key


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    writer.write_eof()


def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    tasks.add(task := asyncio.ensure_future(echo(reader, writer)))
    task.add_done_callback(tasks.discard)


async def main() -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    configuration.certificate, configuration.private_key = certificate()
    await serve("::", int(sys.argv[1]), configuration=configuration, stream_handler=connected)
    print("serving", flush=True)
    await asyncio.Event().wait()


tasks: set[asyncio.Future[None]] = set()

if __name__ == "__main__":
    asyncio.run(main())
