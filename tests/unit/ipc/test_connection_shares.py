# SPDX-License-Identifier: Apache-2.0
"""Which connection of a public port is closed for a new one."""

from __future__ import annotations

from ztunnel.ipc.connection_shares import ConnectionShares

NODE = "192.0.2.1"


def test_source_beyond_its_share_loses_its_own_oldest_connection() -> None:
    shares: ConnectionShares[str] = ConnectionShares(10, 2)
    assert shares.add("other", "192.0.2.8") is None
    assert [shares.add(name, "192.0.2.9") for name in "abcd"] == [None, None, "a", "b"]
    assert len(shares) == 3


def test_full_port_evicts_the_oldest_connection() -> None:
    shares: ConnectionShares[str] = ConnectionShares(3, 2)
    evicted = [shares.add(name, f"192.0.2.{number}") for number, name in enumerate("abcde")]
    assert evicted == [None, None, None, "a", "b"]


def test_node_is_evicted_last_and_has_no_share() -> None:
    shares: ConnectionShares[str] = ConnectionShares(4, 2, [NODE])
    assert [shares.add(name, NODE) for name in ("n1", "n2", "n3")] == [None] * 3
    assert [shares.add(name, f"10.0.0.{name}") for name in "123"] == [None, "1", "2"]
    assert shares.add("n4", NODE) == "3"
    assert shares.add("n5", NODE) == "n1"


def test_v4_mapped_address_and_zone_do_not_make_another_source() -> None:
    shares: ConnectionShares[str] = ConnectionShares(8, 1, [NODE])
    assert shares.add("a", "::ffff:10.0.0.9") is None
    assert shares.add("b", "10.0.0.9") == "a"
    assert shares.add("c", "fe80::1%eth0") is None
    assert shares.add("d", "FE80::1") == "c"
    assert [shares.add(name, f"::ffff:{NODE}") for name in "xyz"] == [None] * 3


def test_closed_connections_free_their_share() -> None:
    shares: ConnectionShares[str] = ConnectionShares(2, 1)
    shares.add("a", "10.0.0.9")
    shares.remove("a")
    shares.remove("a")
    assert (shares.add("b", "10.0.0.9"), len(shares)) == (None, 1)
