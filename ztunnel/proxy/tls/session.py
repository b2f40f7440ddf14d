# SPDX-License-Identifier: Apache-2.0
"""One TLS session over a non-blocking socket: plaintext on this side, ciphertext on the socket.

OpenSSL works on memory instead of the socket. A whole buffer of records is one `send`, which TCP
segments into 64 KiB; record by record it would be 16 KiB. One `recv` reads everything that has
arrived. pyOpenSSL sets sessions up, but its reads and writes copy once more, so records bypass it.
The OpenSSL is the one in the `cryptography` package. See decision 0023.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from ztunnel.proxy.io.buffers import BUFFER_BYTES, Buffer, BufferPool
from ztunnel.proxy.io.event_loop import READ, WRITE

RECORD_BYTES = 16 * 1024  # RFC 8446 5.1: maximum plaintext of a record
RECORD_OVERHEAD_BYTES = 22  # header 5, content type 1, tag 16 (RFC 8446 5.2)
ENCRYPT_BATCH_BYTES = 4 * RECORD_BYTES  # per SSL_write: stays in cache and in OpenSSL's memory
MAX_READ_BYTES = 192 * 1024  # ciphertext per turn; with a partial record, it fits one buffer
KEY_UPDATE_CHECK_READS = 64  # look for key update responses at least once per so many reads
MAX_UNREAD_KEY_UPDATE_BYTES = 64 * 1024  # key update responses that a peer may leave unread

_lib: Any = Binding.lib
_NULL: Final[Any] = Binding.ffi.NULL
_text = Binding.ffi.string
_WANT_READ = _lib.SSL_ERROR_WANT_READ
_SSL_read: Final[Any] = _lib.SSL_read
_SSL_write: Final[Any] = _lib.SSL_write
_SSL_set_bio: Final[Any] = _lib.SSL_set_bio
_BIO_read: Final[Any] = _lib.BIO_read
_BIO_new_mem_buf: Final[Any] = _lib.BIO_new_mem_buf
_BIO_set_mem_eof_return: Final[Any] = _lib.BIO_set_mem_eof_return
_BIO_get_mem_data: Final[Any] = _lib.BIO_get_mem_data


class TlsError(Exception):
    """TLS with this peer failed; the text is the reason."""


class CertificateError(TlsError):
    """The peer's certificate is not trusted; the text is the reason."""


class TlsSession:
    """Owns neither socket nor loop: the owner calls it when the socket is ready.

    `end_reason` is empty until the peer's side ends. While `pending` is true, ciphertext waits for
    the socket to become writable: call `flush` before the next `write`.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: SSL.Context,
        buffers: BufferPool,
        *,
        server_side: bool,
        resume: SSL.Session | None = None,
    ) -> None:
        """`resume` (client): a session of `context` to resume, if the server still accepts it."""
        self.sock = sock
        self.context = context
        self.end_reason = ""
        self._connection = SSL.Connection(context, None)
        _lib.SSL_clear_mode(self._connection._ssl, _lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
        if resume is not None:
            self._connection.set_session(resume)
        if server_side:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
        self._ssl = self._connection._ssl
        self._incoming = self._connection._into_ssl
        self._outgoing = self._connection._from_ssl
        self._has_handshake_rest = True  # bytes behind the handshake are in OpenSSL's memory
        self._reads = 0
        self._initial: SSL.Session | None = None  # after the handshake; a ticket replaces it
        self._buffers = buffers
        self._out: Buffer | None = None  # ciphertext that the socket did not accept yet
        self._filled = self._sent = 0  # bytes of `_out`

    # The handshake

    def handshake(self) -> int:
        """Continue the handshake: 0 when it is complete, else the event mask to wait for.

        Raises TlsError, after sending the alert, or OSError.
        """
        while True:
            result = _lib.SSL_do_handshake(self._ssl)
            reason = "" if result == 1 else self._reason(result)
            if not self.flush():
                return WRITE
            if reason:
                raise self._handshake_error(reason)
            if result == 1:
                self._initial = self._connection.get_session()
                return 0
            if not self._feed_handshake():
                return READ

    @property
    def cipher(self) -> str | None:
        return self._connection.get_cipher_name()

    @property
    def protocol(self) -> bytes:
        """Negotiated by ALPN; empty if there is none."""
        return self._connection.get_alpn_proto_negotiated()

    @property
    def resumed(self) -> bool:
        return bool(_lib.SSL_session_reused(self._ssl))

    @property
    def peer_certificate(self) -> x509.Certificate:
        """Verified. Raises ValueError for one that cannot be parsed."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            raise ValueError("the peer sent none")
        return certificate

    @property
    def peer_chain(self) -> list[x509.Certificate]:
        """What the peer sent in the handshake, verified or not; empty in a resumed session."""
        return self._connection.get_peer_cert_chain(as_cryptography=True) or []

    @property
    def resumable(self) -> SSL.Session | None:
        """Client: the session that a later one may resume; None before the first ticket."""
        session = self._connection.get_session()
        if session is None or self._initial is None or session._session == self._initial._session:
            return None
        return session

    # Bytes

    def read_into(self, buffer: Buffer) -> int:
        """Read and decrypt, at most MAX_READ_BYTES; returns the number of plaintext bytes.

        No decryptable bytes stay behind in OpenSSL, where no event of the socket announces them.
        """
        if self._has_handshake_rest:
            self._has_handshake_rest = False
            return self._decrypt(buffer, self._incoming)
        try:
            count = self.sock.recv_into(self._buffers.wire.view, MAX_READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.end_reason = f"read: {error.strerror or error}"
            return 0
        if not count:
            self.end_reason = "closed by peer"
            return 0
        source = self._feed(count)
        filled = self._decrypt(buffer, source)
        self._reads += 1
        if count - filled > RECORD_OVERHEAD_BYTES or not self._reads % KEY_UPDATE_CHECK_READS:
            self._send_key_updates()
        return filled

    def write(self, buffer: Buffer, length: int) -> bool:
        """Encrypt the first `length` bytes, at most BUFFER_BYTES, and send.

        False when some of it is `pending`; the buffer is free in both cases. Raises OSError.
        """
        source, taken = buffer.pointer, 0
        while taken < length:
            result: int = _SSL_write(
                self._ssl, source + taken, min(ENCRYPT_BATCH_BYTES, length - taken)
            )
            if result <= 0:
                raise OSError(self._reason(result) or "waits to read")
            taken += result
            self._collect()
        return self.flush()

    def flush(self) -> bool:
        """Send pending ciphertext; True when nothing is left. Raises OSError."""
        if not self._filled:
            self._collect()
        while self._out is not None:
            try:
                self._sent += self.sock.send(self._out.view[self._sent : self._filled])
            except BlockingIOError:
                return False
            if self._sent == self._filled:
                was_full = self._filled == len(self._out.view)
                self.discard()
                if was_full:
                    self._collect()
        return True

    @property
    def pending(self) -> bool:
        return self._out is not None

    def send_close_notify(self) -> None:
        """Send close_notify, if the connection still works."""
        with suppress(OSError):
            _lib.SSL_shutdown(self._ssl)
            _lib.ERR_clear_error()
            self.flush()

    def discard(self) -> None:
        """Drop pending ciphertext."""
        if self._out is not None:
            self._buffers.release(self._out)
        self._out = None
        self._filled = self._sent = 0

    # Internals

    def _feed_handshake(self) -> int:
        """Pass socket data to OpenSSL, one record at a time: the peer is not authenticated yet."""
        wire = self._buffers.wire
        try:
            count = self.sock.recv_into(wire.view, RECORD_BYTES)
        except BlockingIOError:
            return 0
        if not count:
            raise TlsError("closed by peer")
        _lib.BIO_write(self._incoming, wire.pointer, count)
        return count

    def _feed(self, count: int) -> Any:
        """Let OpenSSL read the received bytes in place. `_decrypt` consumes all of them."""
        source = _BIO_new_mem_buf(self._buffers.wire.pointer, count)
        if source == _NULL:
            raise MemoryError
        _BIO_set_mem_eof_return(source, -1)  # an empty BIO means retry, not EOF
        _SSL_set_bio(self._ssl, source, self._outgoing)
        return source

    def _decrypt(self, buffer: Buffer, source: Any) -> int:
        """Decrypt all complete records; OpenSSL stores the beginning of an incomplete one.

        OpenSSL reads one record at a time from `source`: once it is empty, no record is complete.
        """
        target, filled = buffer.pointer, 0
        while True:
            result: int = _SSL_read(self._ssl, target + filled, BUFFER_BYTES - filled)
            if result <= 0:
                self.end_reason = self._reason(result)
                return filled
            filled += result
            if not _BIO_get_mem_data(source, _NULL):
                return filled

    def _collect(self) -> None:
        """Move ciphertext from OpenSSL to the send buffer."""
        out = self._out or self._buffers.acquire()
        pointer, room = out.pointer + self._filled, len(out.view) - self._filled
        moved: int = _BIO_read(self._outgoing, pointer, room) if room else 0
        if moved > 0:
            self._filled += moved
        if self._filled:
            self._out = out
        else:
            self._buffers.release(out)

    def _send_key_updates(self) -> None:
        """Send OpenSSL's responses to key updates; a peer must read them."""
        waiting = _BIO_get_mem_data(self._outgoing, _NULL)
        if not waiting:
            return
        try:
            if not self.flush() and waiting > MAX_UNREAD_KEY_UPDATE_BYTES:
                self.end_reason = self.end_reason or "the peer does not read key update responses"
        except OSError as error:
            self.end_reason = self.end_reason or f"write: {error.strerror or error}"

    def _reason(self, result: int) -> str:
        """Why an OpenSSL call returned `result`; empty if it waits for the peer."""
        error = _lib.SSL_get_error(self._ssl, result)
        if error == _WANT_READ:
            return ""
        if error == _lib.SSL_ERROR_ZERO_RETURN:
            return "closed by peer"
        code = _lib.ERR_peek_error()
        text = _lib.ERR_reason_error_string(code) if code else _NULL
        _lib.ERR_clear_error()
        return _text(text).decode("ascii", "replace") if text != _NULL else "failed"

    def _handshake_error(self, reason: str) -> TlsError:
        result = _lib.SSL_get_verify_result(self._ssl)
        if result != _lib.X509_V_OK:
            return CertificateError(_text(_lib.X509_verify_cert_error_string(result)).decode())
        return TlsError(reason)
