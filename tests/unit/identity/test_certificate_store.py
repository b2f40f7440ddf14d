# SPDX-License-Identifier: Apache-2.0
"""The node's certificates: fetched, renewed at half life, kept while renewal fails, forgotten."""

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
    """Passes requests on, unless told to fail."""

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


async def test_withheld_certificate_is_used_but_not_renewed_until_it_may_be(tmp_path: Path) -> None:
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


async def test_certificate_never_asked_for_while_withheld_is_asked_for_at_once_after(
    tmp_path: Path,
) -> None:
    got: list[KeyPair] = []
    reasons = {WEB: "", DB: "no such account"}
    signer = _flaky(tmp_path, 3600)
    signer.broken = True
    store = CertificateStore(signer, got.append, blocked_reason=reasons.__getitem__)
    store.ensure(WEB)
    store.ensure(DB)
    await wait_until_async(lambda: signer.calls >= 5)  # the next would come in 8 seconds
    assert all(status.identity == WEB for status in store.statuses() if not status.last_error)
    reasons[WEB] = "no such account"
    await wait_until_async(lambda: store._entries[WEB].blocked_reason != "")
    signer.broken, reasons[WEB], reasons[DB] = False, "", ""
    async with asyncio.timeout(4):
        while {pair.identity for pair in got} != {WEB, DB}:
            await asyncio.sleep(0.005)
    await store.close()


async def test_forgotten_identity_is_not_renewed(tmp_path: Path) -> None:
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


async def test_certificate_that_has_expired_already_is_an_error_not_a_loop(tmp_path: Path) -> None:
    signer = _flaky(tmp_path, 1)
    store = CertificateStore(signer, lambda _: None, clock=lambda: 4e9)
    store.ensure(WEB)
    await wait_until_async(lambda: bool(store.statuses()[0].last_error))
    assert "compare the clocks" in store.statuses()[0].last_error
    assert signer.calls == 1
    await store.close()


async def test_listing_names_the_certificate_that_is_served(tmp_path: Path) -> None:
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


async def test_key_is_in_no_repr_listing_or_log(tmp_path: Path) -> None:
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


async def test_new_roots_are_told_with_the_certificates_that_are_held(tmp_path: Path) -> None:
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


async def test_certificate_that_no_root_vouches_for_any_more_is_renewed_at_once(
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
    """Answers when the test says so, perhaps in the moment nobody wants it any more."""

    def __init__(self, signer: DiskSigner) -> None:
        super().__init__(signer)
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waits = False

    async def sign(self, identity: str, csr_pem: bytes) -> IssuedCertificate:
        issued = await super().sign(identity, csr_pem)
        self.waits = True
        await self.answer
        return issued


async def test_an_answer_in_the_moment_of_forgetting_is_forgotten_too(tmp_path: Path) -> None:
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
