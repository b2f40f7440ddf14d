# SPDX-License-Identifier: Apache-2.0
"""The node's certificates: issued, renewed at half life, blocked and removed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import msgspec
import structlog
from cryptography import x509

from tests.support.waiting import wait_until_async
from ztunnel.identity import ca
from ztunnel.identity.certificate_store import CertificateStore, KeyPair
from ztunnel.identity.csr_signer import DiskSigner, IssuedCertificate

WEB = "spiffe://cluster.local/ns/shop/sa/web"
DB = "spiffe://cluster.local/ns/shop/sa/db"


class _Flaky:
    """Forwards requests unless the test makes it fail."""

    def __init__(self, signer: DiskSigner) -> None:
        self.signer = signer
        self.broken = False
        self.calls = 0

    async def sign(self, identity: str, csr_pem: bytes) -> IssuedCertificate:
        self.calls += 1
        if self.broken:
            raise ConnectionError("signer unreachable")
        return await self.signer.sign(identity, csr_pem)


def _flaky(tmp_path: Path, seconds: float) -> _Flaky:
    authority = ca.load_or_create(tmp_path / "ca", "cluster.local")
    return _Flaky(DiskSigner(authority, ttl=timedelta(seconds=seconds)))


async def test_certificate_arrives_and_is_renewed_with_a_new_key(tmp_path: Path) -> None:
    got: list[KeyPair] = []
    store = CertificateStore(_flaky(tmp_path, 2), got.append)
    store.ensure(WEB)
    store.ensure(WEB)
    await wait_until_async(lambda: len(got) >= 2)
    assert got[0].key_pem != got[1].key_pem
    assert store.statuses()[0].renewals >= 1
    await store.close()


async def test_old_certificate_is_kept_while_the_signer_fails(tmp_path: Path) -> None:
    got: list[KeyPair] = []
    signer = _flaky(tmp_path, 4)
    store = CertificateStore(signer, got.append)
    store.ensure(WEB)
    await wait_until_async(lambda: bool(got))
    signer.broken = True
    await wait_until_async(lambda: bool(store.statuses()[0].last_error))
    assert store.current() == [got[-1]]
    assert store.statuses()[0].last_error == "signer unreachable"
    signer.broken = False
    await wait_until_async(lambda: len(got) >= 2)
    assert store.statuses()[0].last_error == ""
    await store.close()


async def test_blocked_certificate_stays_in_use_and_is_renewed_once_unblocked(
    tmp_path: Path,
) -> None:
    got: list[KeyPair] = []
    reasons = {WEB: ""}
    signer = _flaky(tmp_path, 2)
    store = CertificateStore(signer, got.append, blocked_reason=reasons.__getitem__)
    store.ensure(WEB)
    await wait_until_async(lambda: bool(got))
    reasons[WEB] = "no such account"
    (status,) = store.statuses()
    assert (status.state, status.last_error) == ("blocked", "no such account")
    assert status.not_after == got[-1].not_after
    asked = signer.calls
    await wait_until_async(lambda: store.current() == [])  # it ends when it expires, not before
    assert signer.calls == asked
    reasons[WEB] = ""
    await wait_until_async(lambda: len(got) > 1)
    (status,) = store.statuses()
    assert (status.state, status.last_error) == ("valid", "")
    await store.close()


async def test_certificate_is_requested_immediately_once_unblocked(
    tmp_path: Path,
) -> None:
    got: list[KeyPair] = []
    reasons = {WEB: "", DB: "no such account"}
    signer = _flaky(tmp_path, 3600)
    signer.broken = True
    store = CertificateStore(signer, got.append, blocked_reason=reasons.__getitem__)
    store.ensure(WEB)
    store.ensure(DB)
    await wait_until_async(lambda: signer.calls >= 5, timeout_s=20)  # the next is due in 8 seconds
    assert all(status.identity == WEB for status in store.statuses() if not status.last_error)
    reasons[WEB] = "no such account"
    await wait_until_async(lambda: store._entries[WEB].blocked_reason != "")
    signer.broken, reasons[WEB], reasons[DB] = False, "", ""
    async with asyncio.timeout(4):
        while {pair.identity for pair in got} != {WEB, DB}:
            await asyncio.sleep(0.005)
    await store.close()


async def test_removed_identity_is_not_renewed(tmp_path: Path) -> None:
    got: list[KeyPair] = []
    store = CertificateStore(_flaky(tmp_path, 3600), got.append)
    store.ensure(WEB)
    store.ensure(DB)
    await wait_until_async(lambda: len(got) == 2)
    store.remove(WEB)
    assert store.identities() == {DB}
    assert [pair.identity for pair in store.current()] == [DB]
    await store.close()
    assert store.current() == []


async def test_expired_issued_certificate_is_an_error_with_backoff(tmp_path: Path) -> None:
    signer = _flaky(tmp_path, 1)
    store = CertificateStore(signer, lambda _: None, clock=lambda: 4e9)
    store.ensure(WEB)
    await wait_until_async(lambda: bool(store.statuses()[0].last_error))
    assert "compare the clocks" in store.statuses()[0].last_error
    assert signer.calls == 1
    await store.close()


async def test_status_shows_the_certificate_in_use(tmp_path: Path) -> None:
    got: list[KeyPair] = []
    store = CertificateStore(_flaky(tmp_path, 3600), got.append)
    store.ensure(WEB)
    await wait_until_async(lambda: bool(got))
    leaf = x509.load_pem_x509_certificate(got[0].chain_pem)
    status = store.statuses()[0]
    assert status.serial == f"{leaf.serial_number:x}"
    assert status.not_after == leaf.not_valid_after_utc.timestamp()
    assert status.state == "valid"
    await store.close()


async def test_key_never_appears_in_repr_status_or_log(tmp_path: Path) -> None:
    got: list[KeyPair] = []
    with structlog.testing.capture_logs() as lines:
        store = CertificateStore(_flaky(tmp_path, 3600), got.append)
        store.ensure(WEB)
        await wait_until_async(lambda: bool(got))
        shown = repr(got) + repr(vars(store)) + msgspec.json.encode(store.statuses()).decode()
        await store.close()
    secret = got[0].key_pem.decode().splitlines()[1]
    assert secret not in shown
    assert lines
    assert secret not in repr(lines)


async def test_new_roots_are_reported_with_every_certificate(tmp_path: Path) -> None:
    got: list[KeyPair] = []
    store = CertificateStore(_flaky(tmp_path, 3600), got.append)
    store.ensure(WEB)
    await wait_until_async(lambda: bool(got))
    both = got[0].roots_pem + _other_root(tmp_path)
    store.set_roots(both)
    store.set_roots(both)
    assert [pair.roots_pem for pair in got] == [got[0].roots_pem, both]
    assert got[1].serial == got[0].serial
    assert store.current() == got[1:]
    await store.close()


async def test_certificate_without_trusted_root_is_renewed_immediately(
    tmp_path: Path,
) -> None:
    got: list[KeyPair] = []
    store = CertificateStore(_flaky(tmp_path, 3600), got.append)
    store.ensure(WEB)
    await wait_until_async(lambda: bool(got))
    await asyncio.sleep(0)  # its task sleeps until half life
    store.set_roots(_other_root(tmp_path))
    await wait_until_async(lambda: got[-1].serial != got[0].serial)
    await store.close()


def _other_root(tmp_path: Path) -> bytes:
    return ca.load_or_create(tmp_path / "other", "cluster.local").roots_pem


class _Late(_Flaky):
    """Responds when the test releases it, possibly after the identity was removed."""

    def __init__(self, signer: DiskSigner) -> None:
        super().__init__(signer)
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waits = False

    async def sign(self, identity: str, csr_pem: bytes) -> IssuedCertificate:
        issued = await super().sign(identity, csr_pem)
        self.waits = True
        await self.answer
        return issued


async def test_response_during_removal_is_discarded(tmp_path: Path) -> None:
    got: list[KeyPair] = []
    signer = _Late(_flaky(tmp_path, 3600).signer)
    store = CertificateStore(signer, got.append)
    store.ensure(WEB)
    task = store._entries[WEB].task
    assert task is not None
    await wait_until_async(lambda: signer.waits)
    signer.answer.set_result(None)
    store.remove(WEB)
    done, _ = await asyncio.wait([task], timeout=5)
    assert done == {task}
    assert got == []
    await store.close()
